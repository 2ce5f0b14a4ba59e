{{- define "tenantgate.name" -}}
{{- $name := .Release.Name }}
{{- if not (contains .Chart.Name $name) }}{{ $name = printf "%s-%s" $name .Chart.Name }}{{ end -}}
{{ $name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "tenantgate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tenantgate.labels" -}}
{{ include "tenantgate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tenantgate
{{- end }}

{{- define "tenantgate.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "tenantgate.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ include "tenantgate.tag" . }}{{ end }}
{{- end }}

{{- define "tenantgate.migrateName" -}}
{{- $tag := include "tenantgate.tag" . | lower | replace "." "-" | replace "_" "-" | trunc 12 | trimSuffix "-" -}}
{{ include "tenantgate.name" . }}-migrate-{{ $tag }}-{{ include "tenantgate.image" . | sha256sum | trunc 6 }}
{{- end }}

{{- /* The values without those that are null: `runAsUser: null` removes the field. */ -}}
{{- define "tenantgate.withoutNulls" -}}
{{- $kept := dict }}
{{- range $name, $value := . }}{{ if not (kindIs "invalid" $value) }}{{ $_ := set $kept $name $value }}{{ end }}{{ end }}
{{- if $kept }}{{ toYaml $kept }}{{ end }}
{{- end }}

{{- define "tenantgate.appProtocol" -}}
{{ .Values.service.appProtocol | default (ternary "grpc" "kubernetes.io/h2c" (not (empty .Values.tls.secretName))) }}
{{- end }}

{{- define "tenantgate.manageName" -}}
{{ include "tenantgate.name" . }}-manage
{{- end }}

{{- /* Not the labels of the servers: their Services, monitors and policies must not find these pods. */ -}}
{{- define "tenantgate.manageSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-manage
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tenantgate.manageLabels" -}}
{{ include "tenantgate.manageSelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tenantgate
app.kubernetes.io/component: manage
{{- end }}

{{- /* To DNS and the database alone. */ -}}
{{- define "tenantgate.egress" -}}
- ports:
  - port: 53
    protocol: UDP
  - port: 53
    protocol: TCP
- ports:
  - port: {{ .Values.networkPolicy.databasePort }}
    protocol: TCP
  {{- with .Values.networkPolicy.database }}
  to:
    {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* The Envoy beside a server. */ -}}
{{- define "tenantgate.envoyContainer" -}}
- name: envoy
  image: {{ .Values.envoy.image | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
  - --config-path
  - /etc/envoy/envoy.yaml
  - --log-level
  - info
  - --disable-hot-restart
  env:
  - name: ENVOY_DYNAMIC_MODULES_SEARCH_PATH
    value: /usr/lib/tenantgate
  ports:
  - name: http
    containerPort: {{ .Values.envoy.port }}
    protocol: TCP
  # It listens once its configuration is accepted, the module included.
  readinessProbe:
    tcpSocket:
      port: http
    periodSeconds: 2
  # As long as the server: a request that this Envoy has accepted is still checked.
  lifecycle:
    preStop:
      sleep:
        seconds: {{ .Values.preStopSeconds }}
  {{- with include "tenantgate.withoutNulls" .Values.securityContext }}
  securityContext:
    {{- . | nindent 4 }}
  {{- end }}
  resources:
    {{- toYaml .Values.envoy.resources | nindent 4 }}
  volumeMounts:
  - name: published
    mountPath: /run/tenantgate
  - name: envoy-config
    mountPath: /etc/envoy
    readOnly: true
  - name: envoy-module
    mountPath: /usr/lib/tenantgate
    readOnly: true
{{- end }}
