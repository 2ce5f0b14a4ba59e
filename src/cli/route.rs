//! The commands for rules of routes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::values::WaitArgs;
use super::view::{Text, fixed_table};
use super::{Failure, Out, wait_for_servers};
use crate::admin::{Admin, RouteDifference, RouteVerdict, RouteView, TestedRequest};
use crate::config::{self, RoutingArgs};
use crate::route::lint::{LintFinding, LintOptions};
use crate::route::{HostPattern, Method, PathTemplate, RouteId, RouteMode, RouteRow, RouteTable, Rule};
use crate::scope::Needs;

#[derive(clap::Subcommand)]
pub(super) enum RouteCommand {
    /// Add a rule
    Add(Box<AddArgs>),
    /// Show all rules, by host, path and method
    List(ListArgs),
    /// Remove a rule
    Remove {
        /// The name or id of the rule
        #[arg(value_name = "NAME|ID")]
        reference: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Show which rule wins for a request, why, and which would be next
    Test(TestArgs),
    /// Replace all rules by those of a file, in one transaction
    Apply {
        /// A JSON array, as `route list -o json` prints it; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Show the difference, but change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

#[derive(clap::Args)]
pub(super) struct AddArgs {
    /// The path: segments that are literal or `{name}`, and `**` last for zero or more, such as /v1/models/{model}/**
    #[arg(long, value_name = "P", value_parser = PathTemplate::parse)]
    path: PathTemplate,
    /// The host: exact, `*.example.com` for every host below it, or `*`
    #[arg(long, value_name = "H", default_value = "*", value_parser = HostPattern::parse)]
    host: HostPattern,
    /// The method, or `*`; GET includes HEAD
    #[arg(long, value_name = "M", default_value = "*", value_parser = Method::parse)]
    method: Method,
    /// Whether a key is needed: `required`, `optional` or `public`
    #[arg(long, value_name = "M", default_value = "required", value_parser = RouteMode::parse)]
    mode: RouteMode,
    /// What a key needs: `a b | c` is (a and b) or c
    #[arg(long, value_name = "NEEDS", value_parser = Needs::parse)]
    scopes: Option<Needs>,
    /// Let keys that lack a scope pass, and report them
    #[arg(long)]
    shadow: bool,
    /// A unique name for the rule
    #[arg(long, value_name = "N")]
    name: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(clap::Args)]
pub(super) struct ListArgs {
    /// Also report rules that never win or that the options below override, methods that fall through to a wider rule,
    /// needs that no live key meets, and scopes that no rule needs
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    pub(super) routing: RoutingArgs,
}

#[derive(clap::Args)]
pub(super) struct TestArgs {
    /// The method of the request
    #[arg(long, value_name = "M", default_value = "GET")]
    method: String,
    /// The host of the request
    #[arg(long, value_name = "H")]
    host: String,
    /// The path of the request
    #[arg(long, value_name = "P")]
    path: String,
    /// The key of the request: id or prefix
    #[arg(long, value_name = "K")]
    key_prefix: Option<String>,
    /// A `context_extensions` entry of the route in Envoy's configuration, such as tenantgate.mode=optional
    #[arg(long, value_name = "K=V", value_parser = super::values::pair)]
    context: Vec<(String, String)>,
    #[command(flatten)]
    pub(super) routing: RoutingArgs,
}

/// A rule of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    /// Ignored: rules are identified by host, method and path.
    #[serde(default, rename = "id")]
    _id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default = "any")]
    host: String,
    #[serde(default = "any")]
    method: String,
    path: String,
    #[serde(default = "required")]
    mode: String,
    #[serde(default)]
    scopes: Option<String>,
    #[serde(default)]
    shadow: bool,
}

fn any() -> String {
    "*".into()
}

fn required() -> String {
    RouteMode::Required.as_str().into()
}

impl From<FileRule> for RouteRow {
    fn from(rule: FileRule) -> Self {
        let FileRule { _id, name, host, method, path, mode, scopes, shadow } = rule;
        Self { id: RouteId(Uuid::nil()), name, host, method, path, mode, scopes, shadow }
    }
}

/// Runs a command for rules.
pub(super) async fn route(admin: &Admin, command: RouteCommand, out: &mut Out) -> Result<(), Failure> {
    match command {
        RouteCommand::Add(args) => {
            let AddArgs { path, host, method, mode, scopes, shadow, name, wait } = *args;
            let route = RouteRow {
                id: RouteId(Uuid::nil()),
                name,
                host: host.to_string(),
                method: method.to_string(),
                path: path.to_string(),
                mode: mode.as_str().to_owned(),
                scopes: scopes.map(|needs| needs.to_string()),
                shadow,
            };
            let route = admin.add_route(route).await?;
            wait_for_servers(admin, &wait).await?;
            out.show(&RouteView::from(&route))
        }
        RouteCommand::List(ListArgs { check: false, .. }) => {
            out.show(&admin.routes().await?.iter().map(RouteView::from).collect::<Vec<_>>())
        }
        RouteCommand::List(ListArgs { check: true, routing }) => {
            let (reading, policy) = config::routing(&routing)?;
            let options = LintOptions { public: reading.public, path: policy.path };
            out.show(&checked(admin, &options).await?)
        }
        RouteCommand::Remove { reference, wait } => {
            let route = admin.remove_route(&reference).await?;
            wait_for_servers(admin, &wait).await?;
            out.show(&RouteView::from(&route))
        }
        RouteCommand::Test(args) => {
            let TestArgs { method, host, path, key_prefix: key, context, routing } = args;
            let (reading, policy) = config::routing(&routing)?;
            let request = TestedRequest { method, host, path, key, context, reading, policy };
            out.show(&admin.test_route(&request).await?)
        }
        RouteCommand::Apply { file, dry_run, wait } => {
            let rules: Vec<FileRule> = serde_json::from_str(&read(&file)?).map_err(|error| {
                Failure::usage(format!("{} is not a table of rules: {error}", file.display()))
            })?;
            let rules: Vec<_> = rules.into_iter().map(RouteRow::from).collect();
            let difference = admin.apply_routes(&rules, dry_run).await?;
            if !dry_run {
                wait_for_servers(admin, &wait).await?;
            }
            out.show(&difference)
        }
    }
}

fn read(file: &PathBuf) -> Result<String, Failure> {
    let read = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    read.map_err(|error| Failure::refused(format!("{} cannot be read: {error}", file.display())))
}

/// All rules, and the findings about them.
#[derive(Serialize)]
struct CheckedRoutes {
    routes: Vec<RouteView>,
    findings: Vec<LintFindingView>,
}

/// A finding about a rule or a scope.
#[derive(Serialize)]
struct LintFindingView {
    finding: &'static str,
    /// The name or id of the rule.
    rule: Option<String>,
    detail: String,
}

async fn checked(admin: &Admin, options: &LintOptions) -> Result<CheckedRoutes, Failure> {
    let rows = admin.routes().await?;
    let table = RouteTable::of(&rows);
    let mut findings: Vec<_> = table
        .damaged()
        .map(|(entry, damage)| LintFindingView {
            finding: "damaged",
            rule: Some(entry.name.as_deref().map_or_else(|| entry.id.0.to_string(), str::to_owned)),
            detail: damage.to_string(),
        })
        .collect();
    findings.extend(table.lint(&admin.granted_scopes().await?, options).iter().map(LintFindingView::of));
    Ok(CheckedRoutes { routes: rows.iter().map(RouteView::from).collect(), findings })
}

impl LintFindingView {
    fn of(finding: &LintFinding<'_>) -> Self {
        let named = |rule: &Rule| rule.name.as_deref().map_or_else(|| rule.id.0.to_string(), str::to_owned);
        match finding {
            LintFinding::NeverWins(rule) => Self {
                finding: "never_wins",
                rule: Some(named(rule)),
                detail: "more specific rules win every request of this rule".into(),
            },
            LintFinding::NeverReached(rule) => Self {
                finding: "never_wins",
                rule: Some(named(rule)),
                detail: "every path of this rule is ambiguous: it needs `serve --encoded-slash keep` or `--path-parameters \
                         keep`; give `route list --check` the options of serve"
                    .into(),
            },
            LintFinding::Public { rule, methods } => Self {
                finding: "overridden",
                rule: Some(named(rule)),
                detail: format!(
                    "--public comes before rules: {} requests for this rule need no key; give `route list --check` the \
                     options of serve",
                    methods.join(" and ")
                ),
            },
            LintFinding::FallsThrough { rule, to, handled } => Self {
                finding: "falls_through",
                rule: Some(named(rule)),
                detail: match &to.shape.method {
                    Method::Any => format!(
                        "requests with a method other than {} go to the rule {}",
                        handled.join(" and "),
                        named(to)
                    ),
                    Method::Named(method) => format!("{method} requests go to the rule {}", named(to)),
                },
            },
            LintFinding::UnmetNeeds(rule) => Self {
                finding: "unmet_needs",
                rule: Some(named(rule)),
                detail: "no live key is granted what the rule needs".into(),
            },
            LintFinding::UnneededScope(scope) => Self {
                finding: "unneeded_scope",
                rule: None,
                detail: format!(
                    "live keys are granted {scope}, which no rule needs; Envoy's tenantgate.scopes were not examined"
                ),
            },
        }
    }
}

const HEAD: [&str; 6] = ["HOST", "METHOD", "PATH", "MODE", "SCOPES", "NAME"];

impl Text for RouteView {
    fn text(&self) -> String {
        fixed_table(HEAD, [self.cells()].into_iter())
    }
}

impl Text for Vec<RouteView> {
    fn text(&self) -> String {
        if self.is_empty() {
            return "no rules yet: `tenantgate route add` creates one".into();
        }
        fixed_table(HEAD, self.iter().map(RouteView::cells))
    }
}

impl Text for CheckedRoutes {
    fn text(&self) -> String {
        let mut lines = vec![self.routes.text()];
        let found = self.findings.iter().map(|found| match &found.rule {
            Some(rule) => format!("{}: {rule}: {}", found.finding, found.detail),
            None => format!("{}: {}", found.finding, found.detail),
        });
        lines.extend(found);
        lines.join("\n")
    }
}

impl Text for RouteDifference {
    fn text(&self) -> String {
        let line = |mark: char, route: &RouteView| format!("{mark} {}", route.cells().join("  "));
        let mut lines: Vec<_> = self.removed.iter().map(|route| line('-', route)).collect();
        for changed in &self.changed {
            lines.extend([line('-', &changed.before), line('+', &changed.after)]);
        }
        lines.extend(self.added.iter().map(|route| line('+', route)));
        let done = if self.dry_run { "would be " } else { "" };
        lines.push(format!(
            "{done}added {}, removed {}, changed {}, unchanged {}",
            self.added.len(),
            self.removed.len(),
            self.changed.len(),
            self.unchanged
        ));
        lines.join("\n")
    }
}

impl Text for RouteVerdict {
    fn text(&self) -> String {
        let rule = self.rule.as_ref().map_or_else(|| "none".to_owned(), |rule| rule.cells().join("  "));
        let mut lines = vec![format!("rule       {rule}")];
        lines.extend(self.why.iter().map(|why| format!("because    {why}")));
        lines.push(format!("mode       {}", self.mode));
        lines.extend(self.needs.iter().map(|needs| format!("needs      {needs}")));
        lines.extend(self.ambiguous.iter().map(|why| format!("ambiguous  {why}")));
        lines.extend(self.next.iter().map(|next| format!("next       {}", next.cells().join("  "))));
        let option = self.option.map_or_else(String::new, |option| format!(", by the option {option}"));
        lines.push(format!("outcome    {}{option}", self.outcome));
        if !self.not_considered.is_empty() {
            let names = self.not_considered.join(", ");
            lines.push(format!("not shown  what the {names} of the key decide: see `tenantgate explain`"));
        }
        lines.join("\n")
    }
}
