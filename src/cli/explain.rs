//! The command `explain`: shows why a request gets its answer.
//!
//! Reads the arguments and shows the outcome table with the rows that applied, for people as a table, for programs as
//! an array. The client's answer is read from the very message that Envoy would get. With a decision id, the decision
//! is searched in logs first, and its key is decided for the time of the decision. A request can also be sent through
//! Envoy, to compare the result with the explanation.

mod logged;
mod show;
mod through;

use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser as _;
use http::Uri;
use uuid::Uuid;
use zeroize::Zeroizing;

use self::logged::Logged;
use self::show::{DecisionView, ExplainView};
use self::through::ThroughView;
use super::{CommandSession, Failure, open_admin};
use crate::admin::AdminError;
use crate::clock::{SystemClock, Timestamp};
use crate::config::{self, JudgementArgs, ModeArgs};
use crate::decision::Freshness;
use crate::envoy;
use crate::explain::{Explainer, Explanation, Question};
use crate::ext_authz::translate::ResponseOptions;
use crate::invalid::InvalidValue;
use crate::key::format::{SCHEME, is_stored_prefix, parse};
use crate::policy;
use crate::request::{self, AUTHORIZATION, RequestReader};
use crate::server::{ExplainFn, ExplainedRequest};
use crate::store::StoreError;
use crate::tenant::Mode;
use crate::verify::memo::Peppers;

/// The options of `explain`.
#[derive(clap::Args, Clone)]
pub(crate) struct ExplainArgs {
    /// The public prefix of the key (llmk_…); explains the right secret and a wrong one
    #[arg(long, value_name = "PREFIX", value_parser = prefix, conflicts_with = "key_file")]
    key_prefix: Option<String>,
    /// The file with the whole key, or `-` for standard input; the key is verified
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The key comes as `Authorization: Bearer`, not in the key header
    #[arg(long)]
    bearer: bool,
    /// The method of the request
    #[arg(long, value_name = "M", default_value = "GET")]
    method: String,
    /// The path of the request; defaults to a path that is not public
    #[arg(long, value_name = "P")]
    path: Option<String>,
    /// The host of the request, for rules of one host
    #[arg(long, value_name = "H", default_value = "")]
    host: String,
    /// The address of the client, for keys with networks
    #[arg(long, value_name = "IP", value_parser = super::values::client_ip)]
    client_address: Option<IpAddr>,
    /// A `context_extensions` entry of the route in Envoy's configuration, such as tenantgate.scopes=models.read.
    /// Repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = super::values::pair)]
    context: Vec<(String, String)>,
    /// The time for which to decide (RFC 3339), such as 2027-01-31T00:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = super::values::rfc_3339)]
    at: Option<Timestamp>,
    /// The id of a decision; the client of a rejected request has it in x-llmcore-decision-id
    #[arg(long, value_name = "ID", value_parser = logged::decision_id)]
    decision_id: Option<Uuid>,
    /// A log that contains the decision: tenantgate's or Envoy's, or `-` for standard input. Repeatable
    #[arg(long, value_name = "FILE", requires = "decision_id")]
    log: Vec<PathBuf>,
    /// Also send the request through this Envoy: `http://HOST:PORT` or `https://HOST:PORT`
    #[arg(long, value_name = "URL", value_parser = envoy::http::address, conflicts_with_all = ["key_prefix", "decision_id"])]
    through: Option<Uri>,
    /// The authority that signed the certificate of --through (PEM); defaults to the system's authorities
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Options that must be the same as for `serve`
    #[command(flatten)]
    pub(crate) judgement: JudgementArgs,
    /// Whether rejections are enforced
    #[command(flatten)]
    mode: ModeArgs,
}

/// The options without a command, to parse a request for an explanation that does not come from the command line.
#[derive(clap::Parser)]
struct Alone {
    #[command(flatten)]
    args: ExplainArgs,
}

/// Returns the function that explains requests of management over HTTP. It decides as a server with the options in the
/// environment of this process.
pub(super) fn for_management(by: &CommandSession) -> ExplainFn {
    let (database, actor) = (by.database.clone(), by.actor.clone());
    Arc::new(move |request| {
        let by = CommandSession { database: database.clone(), actor: actor.clone() };
        Box::pin(async move { asked_over_http(&request, &by).await })
    })
}

async fn asked_over_http(
    request: &ExplainedRequest,
    by: &CommandSession,
) -> Result<serde_json::Value, AdminError> {
    let mut typed = vec!["explain".to_owned()];
    let ExplainedRequest { key_prefix, method, path, host, client_address, context, at } = request;
    for (name, value) in [
        ("key-prefix", key_prefix),
        ("method", method),
        ("path", path),
        ("host", host),
        ("client-address", client_address),
        ("at", at),
    ] {
        typed.extend(value.iter().map(|value| format!("--{name}={value}")));
    }
    typed.extend(context.iter().map(|(name, value)| format!("--context={name}={value}")));
    let parsed = Alone::try_parse_from(typed);
    let Alone { args } =
        parsed.map_err(|error| AdminError::BadRequest(super::one_line(&error.to_string())))?;
    let (view, whole) = explain(&args, by).await.map_err(|failure| refusal(&failure))?;
    whole.map_err(|failure| refusal(&failure))?;
    serde_json::to_value(&view).map_err(|error| AdminError::Refused(error.to_string()))
}

fn refusal(failure: &Failure) -> AdminError {
    let why = failure.lines.join("; ");
    match failure.code {
        2 => AdminError::BadRequest(why),
        3 => AdminError::Store(StoreError::Unavailable(why)),
        _ => AdminError::Refused(why),
    }
}

fn prefix(text: &str) -> Result<String, InvalidValue> {
    if is_stored_prefix(text) {
        Ok(text.to_owned())
    } else if parse(text.as_bytes()).is_ok() {
        Err("this is a whole key: give its prefix (up to the second _), or the key in a file with --key-file"
            .into())
    } else {
        Err(format!("invalid prefix: expected {SCHEME} and 1 to 48 letters, digits or hyphens").into())
    }
}

/// The request to explain: the arguments, and what the logs add to them.
struct RequestToExplain<'a> {
    args: &'a ExplainArgs,
    key: Option<Zeroizing<String>>,
    /// Whether the secret of the key is a placeholder.
    stand_in: bool,
    method: String,
    path: Option<String>,
    at: Option<Timestamp>,
    freshness: Freshness,
}

impl<'a> RequestToExplain<'a> {
    fn new(args: &'a ExplainArgs, logged: &[Logged]) -> Result<Self, Failure> {
        let first =
            |field: fn(&Logged) -> &Option<String>| logged.iter().find_map(|line| field(line).clone());
        let of_log = first(|line| &line.key_prefix).filter(|prefix| is_stored_prefix(prefix));
        let known = args.key_prefix.clone().or(of_log);
        let stand_in = args.key_file.is_none() && known.is_some();
        let key = match &args.key_file {
            Some(file) => Some(read_key("--key-file", file)?),
            None => known.map(|prefix| Zeroizing::new(format!("{prefix}_00000000"))),
        };
        let root = args.through.as_ref().map(|_| "/".to_owned());
        Ok(Self {
            args,
            key,
            stand_in,
            method: first(|line| &line.method).unwrap_or_else(|| args.method.clone()),
            path: args.path.clone().or_else(|| first(|line| &line.path)).or(root),
            at: args.at.or(args.decision_id.map(logged::made_at)),
            freshness: freshness(first(|line| &line.cause).or(first(|line| &line.reason)).as_deref()),
        })
    }

    /// Returns whether there is something to decide: a request always, a decision from a log only with its key.
    fn has_cases(&self) -> bool {
        self.key.is_some() || self.args.decision_id.is_none()
    }
}

/// Returns the freshness of the replica that this logged reason implies.
fn freshness(reason: Option<&str>) -> Freshness {
    match reason {
        Some("never_loaded") => Freshness::NeverLoaded,
        Some("too_old") => Freshness::TooOld,
        Some("unknown_while_stale") => Freshness::Stale,
        _ => Freshness::Fresh,
    }
}

/// Explains the request that the arguments describe. The inner error says why the explanation is incomplete.
pub(super) async fn explain(
    args: &ExplainArgs,
    by: &CommandSession,
) -> Result<(ExplainView, Result<(), Failure>), Failure> {
    let (options, policy, peppers, mode) = config::judgement_in_mode(&args.judgement, &args.mode)?;
    let store = config::inspected(&by.database, by.actor.clone())
        .map_err(|why| Failure::usage(format!("{}: {why}", by.database.option())))?;
    let decision = args.decision_id.map(|id| looked_up(args, id)).transpose()?;
    let asked = RequestToExplain::new(args, decision.as_ref().map_or(&[], |decision| &decision.logged))?;
    let through = sent(&asked, &options).await?;
    let database = store.address();
    let mut view = ExplainView::of(database.clone());
    let mut whole = Ok(());
    if asked.has_cases() {
        let explainer = Explainer::new(store, Arc::new(SystemClock), peppers);
        match judged(&asked, &explainer, by, (&options, policy, mode), &database).await {
            Ok(judged) => view = judged,
            Err(failure) if failure.code == 3 && (through.is_some() || decision.is_some()) => {
                whole = Err(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    view.notes.extend(decision.iter().flat_map(|decision| advice(decision, &asked)));
    view.decision = decision;
    view.through = through;
    view.compare();
    Ok((view, whole))
}

/// Searches a decision in the logs.
fn looked_up(args: &ExplainArgs, id: Uuid) -> Result<DecisionView, Failure> {
    let logged = logged::find(&args.log, id)?;
    if logged.is_empty() && !args.log.is_empty() {
        let why = format!(
            "none of these logs contains the decision {id}, made at {}: tenantgate logs at most 50 rejections a second, Envoy's access log contains all",
            logged::made_at(id)
        );
        return Err(Failure::refused(why));
    }
    Ok(DecisionView { id: id.to_string(), made_at: logged::made_at(id).to_string(), logged })
}

/// Returns advice on how to learn more about a decision.
fn advice(decision: &DecisionView, asked: &RequestToExplain<'_>) -> Vec<String> {
    match (decision.logged.as_slice(), asked.has_cases()) {
        ([], _) => asked.args.decision_id.map(logged::how_to_find).unwrap_or_default(),
        (_, false) => {
            vec![
                "logs name a key only after the client has proven it: give its prefix with --key-prefix"
                    .into(),
            ]
        }
        (logged, true)
            if asked.args.mode.mode != Mode::Shadow.as_str() && logged.iter().any(Logged::is_shadow) =>
        {
            vec![
                "it passed in shadow mode of the server or the tenant: use --mode shadow if it was the server's"
                    .into(),
            ]
        }
        (_, true) => Vec::new(),
    }
}

/// Sends the request through Envoy, if requested.
async fn sent(
    asked: &RequestToExplain<'_>,
    options: &request::RequestOptions,
) -> Result<Option<ThroughView>, Failure> {
    let Some(url) = &asked.args.through else { return Ok(None) };
    let carried = asked.key.as_ref().map(|key| carried(key, asked.args.bearer));
    let name = if asked.args.bearer { AUTHORIZATION } else { &options.key_header };
    let header = carried.as_ref().map(|value| (name, value.as_str()));
    let target = (asked.method.as_str(), asked.path.as_deref().unwrap_or("/"));
    through::through(url, asked.args.ca.as_deref(), target, header).await.map(Some)
}

/// Decides the request and prepares the output.
async fn judged(
    asked: &RequestToExplain<'_>,
    explainer: &Explainer,
    by: &CommandSession,
    (options, policy, mode): (&request::RequestOptions, policy::PolicyOptions, Mode),
    database: &str,
) -> Result<ExplainView, Failure> {
    open_admin(by, Peppers::default()).await?;
    let carried = asked.key.as_ref().map(|key| carried(key, asked.args.bearer));
    let request = read(options, carried.as_ref(), asked);
    let (stand_in, at, freshness) = (asked.stand_in, asked.at, asked.freshness);
    let address = asked.args.client_address.map(|address| address.to_canonical());
    let question = Question { request, address, policy, stand_in, at, freshness, mode };
    let mut explanation = explainer.explain(question).await?;
    explanation.notes.extend(remarks(asked, options, asked.key.as_ref(), &explanation));
    let response = ResponseOptions { key_header: options.key_header.clone(), ..ResponseOptions::default() };
    let prefix = asked.key.as_ref().and_then(|key| Some(parse(key.as_bytes()).ok()?.prefix()));
    Ok(ExplainView::of(database.to_owned()).with(&explanation, prefix, &response))
}

/// Reads the file without its line end. Malformed keys are accepted, because they can be explained, too.
pub(super) fn read_key(option: &str, file: &Path) -> Result<Zeroizing<String>, Failure> {
    const LONGEST: u64 = 64 * 1024;
    let mut text = Zeroizing::new(String::new());
    let read = if file == Path::new("-") {
        std::io::stdin().take(LONGEST).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(LONGEST).read_to_string(&mut text))
    };
    read.map_err(|e| Failure::usage(format!("{option} {}: {e}", file.display())))?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

fn carried(key: &str, bearer: bool) -> Zeroizing<String> {
    Zeroizing::new(if bearer { format!("Bearer {key}") } else { key.to_owned() })
}

/// Reads the request as the server would.
fn read<'a>(
    options: &request::RequestOptions,
    carried: Option<&'a Zeroizing<String>>,
    asked: &'a RequestToExplain<'_>,
) -> request::AccessRequest<'a> {
    let mut reader = RequestReader::new(options);
    let name = if asked.args.bearer { AUTHORIZATION } else { &options.key_header };
    if let Some(value) = carried {
        reader.header(name.as_bytes(), value.as_bytes());
    }
    for (name, value) in &asked.args.context {
        reader.context(name.as_bytes(), value.as_bytes());
    }
    match &asked.path {
        Some(path) => reader.finish(asked.method.as_bytes(), asked.args.host.as_bytes(), path.as_bytes()),
        // An empty method matches no rule.
        None => reader.finish(b"", b"", b""),
    }
}

fn remarks(
    asked: &RequestToExplain<'_>,
    options: &request::RequestOptions,
    key: Option<&Zeroizing<String>>,
    explanation: &Explanation<'_>,
) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some(Err(why)) = key.map(|key| parse(key.as_bytes())) {
        remarks.push(format!("the key is malformed: it {why}"));
    }
    if asked.args.bearer && !options.accept_bearer {
        remarks.push("without --accept-bearer, serve ignores Authorization".into());
    }
    if asked.path.is_none() {
        remarks.push("without --path, the path counts as not public, and no rule is for it".into());
    }
    let known = explanation.key.as_ref();
    if let Some(successor) = known.and_then(|key| key.replaced_by) {
        remarks.push(format!("a rotation replaced it by the key {}", successor.0));
    }
    remarks
        .push("a server without a recent poll of the database answers differently: see its /readyz".into());
    remarks
}
