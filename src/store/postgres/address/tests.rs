//! The table of forms is in a file, because an integration test connects each of them as well.

use super::*;

/// Forms as clients write them, and what they come to.
const FORMS: &str = include_str!("../../../../tests/it/databases/urls.txt");

/// Fills in a form: `{name:value}` is the value, `{name}` that of the defaults.
fn filled(form: &str) -> String {
    const DEFAULTS: [(&str, &str); 8] = [
        ("user", "u"),
        ("password", "hunter%40%3A%2Fnever"),
        ("host", "h"),
        ("port", "5432"),
        ("db", "db"),
        ("socket", "/run/postgresql"),
        ("socket%", "%2Frun%2Fpostgresql"),
        ("ca", "/etc/ca.pem"),
    ];
    let mut pieces = form.split('{');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (name, rest) = piece.split_once('}').expect("a closing brace");
        let default =
            |name: &str| DEFAULTS.iter().find(|(known, _)| *known == name).map_or("/x.pem", |(_, v)| v);
        text += name.split_once(':').map_or_else(|| default(name), |(_, value)| value);
        text += rest;
    }
    text
}

/// What an address comes to: user, host or socket, port, database, sslmode, schema.
fn shown(url: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let read = DatabaseUrl::read(url, variable).map_err(|error| error.to_string())?;
    let DatabaseUrl { options, schema, .. } = read;
    let socket = options.get_socket().map(|path| path.display().to_string());
    let host = options.get_host();
    Ok(format!(
        "{}@{}:{}/{} {:?}{}",
        options.get_username(),
        socket.unwrap_or_else(|| if host.contains(':') { format!("[{host}]") } else { host.to_owned() }),
        options.get_port(),
        options.get_database().unwrap_or("-"),
        options.get_ssl_mode(),
        schema.map(|schema| format!(" {schema}")).unwrap_or_default()
    ))
}

#[test]
fn every_form_that_clients_write_is_taken_or_refused_with_what_to_write() {
    let rows = FORMS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rows: Vec<Vec<&str>> = rows.map(|line| line.split(" | ").collect()).collect();
    assert!(rows.len() >= 60, "{}", rows.len());
    let mut wrong = Vec::new();
    for row in rows {
        let [_, form, wanted] = row[..] else { panic!("three columns: {row:?}") };
        let form = filled(form);
        let given = form.strip_prefix("SSL_CERT_FILE=").and_then(|rest| rest.split_once(' '));
        let (file, url) = given.map_or((None, form.as_str()), |(file, url)| (Some(file.to_owned()), url));
        let shown = shown(url, &|name| file.clone().filter(|_| name == "SSL_CERT_FILE"));
        let fits = match wanted.split_once(' ') {
            Some(("refused", why)) => shown == Err(why.to_owned()),
            Some(("fails", _)) => shown.is_ok(),
            _ => shown == Ok(filled(wanted)),
        };
        if !fits {
            wrong.push(format!("{form} | {shown:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn variables_of_libpq_apply_where_the_url_sets_nothing() {
    const URL: &str = "postgresql://u@h/db";
    let with = |url: &str, variables: &[(&str, &str)]| {
        let value =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, v)| (*v).to_owned());
        shown(url, &value)
    };
    let [root, alone] = ["PGSSLROOTCERT", "SSL_CERT_FILE"].map(|name| (name, "/etc/ca.pem"));
    assert_eq!(with(URL, &[("PGSSLMODE", "verify-full")]).unwrap(), "u@h:5432/db VerifyFull");
    assert_eq!(with(URL, &[("PGSSLMODE", "require"), root, alone]).unwrap(), "u@h:5432/db VerifyCa");
    let url = format!("{URL}?sslmode=require");
    assert_eq!(with(&url, &[root, alone]).unwrap(), "u@h:5432/db VerifyCa");
    let both = [root, alone, ("SSL_CERT_DIR", "/etc/ssl/certs")];
    assert!(with(&url, &both).unwrap_err().contains("write sslmode=verify-full"));
    assert_eq!(with(&url, &[("PGSSLMODE", "disable")]).unwrap(), "u@h:5432/db Require", "the URL wins");
    assert_eq!(
        with(&format!("{URL}?channel_binding=prefer"), &[("PGCHANNELBINDING", "require")]).unwrap(),
        "u@h:5432/db Prefer"
    );
    for (name, value, wanted) in [
        ("PGCHANNELBINDING", "require", "sslmode=verify-full"),
        ("PGSERVICE", "prod", "service files are not read"),
        ("PGSSLMODE", "verify", "expected one of disable"),
        ("PGTARGETSESSIONATTRS", "standby", "read-write"),
        ("PGSSLROOTCERT", "system", "write sslrootcert=system into the URL"),
        ("PGREQUIREAUTH", "scram-sha-256", "remove it"),
        ("PGHOSTADDR", "127.0.0.1", "write the host into the URL"),
        ("PGREQUIRESSL", "1", "write sslmode=require"),
        ("PGSSLMINPROTOCOLVERSION", "TLSv1.3", "TLS 1.2 and 1.3 are used"),
        ("PGSSLCERTMODE", "disable", "remove it"),
        ("PGOPTIONS", "-c search_path=a,b", "more than one schema"),
        ("PGLOADBALANCEHOSTS", "random", "name only the primary"),
        ("PGCLIENTENCODING", "LATIN1", "always uses UTF8"),
    ] {
        let said = with(URL, &[(name, value)]).expect_err(name);
        let wanted = said.starts_with(&format!("the variable {name}")) && said.contains(wanted);
        // The last variable was read, but its value is checked with the rest of the URL.
        assert!(wanted || (name == "PGOPTIONS" && said.contains("more than one schema")), "{said}");
    }
    let bare = "postgresql://u@/db";
    for (name, value) in [("PGHOST", "a,b"), ("PGPORT", "21650,2"), ("PGPORT", "garbage"), ("PGPORT", "0")] {
        let said = with(bare, &[(name, value)]).expect_err(value);
        assert!(said.starts_with(&format!("the variable {name}: ")), "{said}");
    }
    let [host, port] = [("PGHOST", "h2"), ("PGPORT", "21650")];
    assert_eq!(with(bare, &[host, port]).unwrap(), "u@h2:21650/db Prefer");
    assert_eq!(with("postgresql://u@h:1/db", &[host, port]).unwrap(), "u@h:1/db Prefer");
    assert_eq!(with(URL, &[("PGOPTIONS", "-c search_path=App")]).unwrap(), "u@h:5432/db Prefer app");
    assert_eq!(with(URL, &[("PGSSLMINPROTOCOLVERSION", "TLSv1.2")]).unwrap(), "u@h:5432/db Prefer");
}
