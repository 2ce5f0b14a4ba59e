//! Why would this be refused?
//!
//! Reads what is to be explained, and shows the table of outcomes with the rows that
//! held: for people as a table, for programs as an array. What a client gets is read
//! out of the very message that Envoy would be sent. A decision that was made is looked
//! up in the logs first, and its key judged as of then; a request may be sent through
//! Envoy, and what came of it is held against the explanation.

mod logged;
mod show;
mod through;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::Uri;
use uuid::Uuid;
use zeroize::Zeroizing;

use self::logged::Logged;
use self::show::{DecisionView, ExplainView};
use self::through::ThroughView;
use super::{By, Failure, ready};
use crate::clock::{SystemClock, Timestamp};
use crate::config::{self, JudgementArgs, ModeArgs};
use crate::decision::Freshness;
use crate::envoy;
use crate::explain::{Explainer, Explanation, Question};
use crate::ext_authz::translate::Speech;
use crate::key::format::{SCHEME, is_stored_prefix, parse};
use crate::request::{self, AUTHORIZATION, Reader};
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
    /// The time for which to decide (RFC 3339), such as 2027-01-31T00:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = super::args::rfc_3339)]
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
    /// What `serve` is told too
    #[command(flatten)]
    pub(crate) judgement: JudgementArgs,
    /// And what becomes of what is to be refused
    #[command(flatten)]
    mode: ModeArgs,
}

fn prefix(text: &str) -> Result<String, String> {
    if is_stored_prefix(text) {
        Ok(text.to_owned())
    } else if parse(text.as_bytes()).is_ok() {
        Err("is a whole key: give its prefix (up to the second _), or the key in a file with --key-file"
            .into())
    } else {
        Err(format!("is no prefix: {SCHEME} and 1 to 48 letters, digits or hyphens"))
    }
}

/// What is to be explained: what was typed, and what the logs add to it.
struct Asked<'a> {
    args: &'a ExplainArgs,
    key: Option<Zeroizing<String>>,
    /// Whether the secret of the key stands in for any.
    stand_in: bool,
    method: String,
    path: Option<String>,
    at: Option<Timestamp>,
    freshness: Freshness,
}

impl<'a> Asked<'a> {
    fn new(args: &'a ExplainArgs, logged: &[Logged]) -> Result<Self, Failure> {
        let first =
            |field: fn(&Logged) -> &Option<String>| logged.iter().find_map(|line| field(line).clone());
        let of_log = first(|line| &line.key_prefix).filter(|prefix| is_stored_prefix(prefix));
        let known = args.key_prefix.clone().or(of_log);
        let stand_in = args.key_file.is_none() && known.is_some();
        let key = match &args.key_file {
            Some(file) => Some(read_key(file)?),
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

    /// Of a decision without a key there is nothing to be judged, but of a request there is.
    fn has_cases(&self) -> bool {
        self.key.is_some() || self.args.decision_id.is_none()
    }
}

/// How true the replica must have been that gave this reason.
fn freshness(reason: Option<&str>) -> Freshness {
    match reason {
        Some("never_loaded") => Freshness::NeverLoaded,
        Some("too_old") => Freshness::TooOld,
        Some("unknown_while_stale") => Freshness::Stale,
        _ => Freshness::Fresh,
    }
}

/// Explains what the arguments describe; and why that is not all, where it is not.
pub(super) async fn explain(
    args: &ExplainArgs,
    by: &By,
) -> Result<(ExplainView, Result<(), Failure>), Failure> {
    let judgement = config::judgement_in_mode(&args.judgement, &args.mode);
    let (options, peppers, mode) =
        judgement.map_err(|mistakes| Failure { code: 2, lines: mistakes.0, locked: false })?;
    let store = config::inspected(&by.database, by.actor.clone())
        .map_err(|why| Failure::usage(format!("{}: {why}", by.database.option())))?;
    let decision = args.decision_id.map(|id| looked_up(args, id)).transpose()?;
    let asked = Asked::new(args, decision.as_ref().map_or(&[], |decision| &decision.logged))?;
    let through = sent(&asked, &options).await?;
    let database = store.address();
    let mut view = ExplainView::of(database.clone());
    let mut whole = Ok(());
    if asked.has_cases() {
        let explainer = Explainer::new(store, Arc::new(SystemClock), peppers);
        match judged(&asked, &explainer, by, (&options, mode), &database).await {
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

/// What the logs say about a decision; nothing without a log.
fn looked_up(args: &ExplainArgs, id: Uuid) -> Result<DecisionView, Failure> {
    let logged = logged::find(&args.log, id)?;
    if logged.is_empty() && !args.log.is_empty() {
        let why = format!(
            "none of these logs has the decision {id}, made at {}: tenantgate logs at most 50 refusals a second, Envoy's access log has all",
            logged::made_at(id)
        );
        return Err(Failure::refused(why));
    }
    Ok(DecisionView { id: id.to_string(), made_at: logged::made_at(id).to_string(), logged })
}

/// What is to be done to know more of a decision.
fn advice(decision: &DecisionView, asked: &Asked<'_>) -> Vec<String> {
    match (decision.logged.as_slice(), asked.has_cases()) {
        ([], _) => asked.args.decision_id.map(logged::how_to_find).unwrap_or_default(),
        (_, false) => {
            vec![
                "no log names a key before possession is proven: say with --key-prefix which one is meant"
                    .into(),
            ]
        }
        (logged, true)
            if asked.args.mode.mode != Mode::Shadow.as_str() && logged.iter().any(Logged::is_shadow) =>
        {
            vec![
                "it passed in shadow mode, the server's or the tenant's: say --mode if it was the server's"
                    .into(),
            ]
        }
        (_, true) => Vec::new(),
    }
}

/// What Envoy makes of the request.
async fn sent(asked: &Asked<'_>, options: &request::Options) -> Result<Option<ThroughView>, Failure> {
    let Some(url) = &asked.args.through else { return Ok(None) };
    let carried = asked.key.as_ref().map(|key| carried(key, asked.args.bearer));
    let name = if asked.args.bearer { AUTHORIZATION } else { &options.key_header };
    let header = carried.as_ref().map(|value| (name, value.as_str()));
    let target = (asked.method.as_str(), asked.path.as_deref().unwrap_or("/"));
    through::through(url, asked.args.ca.as_deref(), target, header).await.map(Some)
}

/// Has the request judged; what is to be shown of it.
async fn judged(
    asked: &Asked<'_>,
    explainer: &Explainer,
    by: &By,
    (options, mode): (&request::Options, Mode),
    database: &str,
) -> Result<ExplainView, Failure> {
    ready(by, Peppers::default()).await?;
    let carried = asked.key.as_ref().map(|key| carried(key, asked.args.bearer));
    let request = read(options, carried.as_ref(), asked);
    let (stand_in, at, freshness) = (asked.stand_in, asked.at, asked.freshness);
    let question = Question { request, stand_in, at, freshness, mode };
    let mut explanation = explainer.explain(question).await?;
    explanation.notes.extend(remarks(asked, options, asked.key.as_ref(), &explanation));
    let speech = Speech { key_header: options.key_header.clone(), ..Speech::default() };
    let prefix = asked.key.as_ref().and_then(|key| Some(parse(key.as_bytes()).ok()?.prefix()));
    Ok(ExplainView::of(database.to_owned()).with(&explanation, prefix, &speech))
}

/// Whatever is in the file but the end of its line: what is malformed is to be explained too.
pub(super) fn read_key(file: &Path) -> Result<Zeroizing<String>, Failure> {
    const LONGEST: u64 = 64 * 1024;
    let mut text = Zeroizing::new(String::new());
    let read = if file == Path::new("-") {
        std::io::stdin().take(LONGEST).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(LONGEST).read_to_string(&mut text))
    };
    read.map_err(|e| Failure::usage(format!("--key-file {}: {e}", file.display())))?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

fn carried(key: &str, bearer: bool) -> Zeroizing<String> {
    Zeroizing::new(if bearer { format!("Bearer {key}") } else { key.to_owned() })
}

/// The request as the server would read it.
fn read<'a>(
    options: &request::Options,
    carried: Option<&'a Zeroizing<String>>,
    asked: &'a Asked<'_>,
) -> request::AccessRequest<'a> {
    let mut reader = Reader::new(options);
    let name = if asked.args.bearer { AUTHORIZATION } else { &options.key_header };
    if let Some(value) = carried {
        reader.header(name.as_bytes(), value.as_bytes());
    }
    match &asked.path {
        Some(path) => reader.finish(asked.method.as_bytes(), b"", path.as_bytes()),
        // No rule has a method without letters.
        None => reader.finish(b"", b"", b""),
    }
}

fn remarks(
    asked: &Asked<'_>,
    options: &request::Options,
    key: Option<&Zeroizing<String>>,
    explanation: &Explanation<'_>,
) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some(Err(why)) = key.map(|key| parse(key.as_bytes())) {
        remarks.push(format!("the key is malformed: it {why}"));
    }
    if asked.args.bearer && !options.accept_bearer {
        remarks.push("without --accept-bearer nobody looks into Authorization".into());
    }
    if asked.path.is_none() {
        remarks.push("no --path was given: taken for one that is not public".into());
    }
    let known = explanation.key.as_ref();
    if let Some(successor) = known.and_then(|key| key.replaced_by) {
        remarks.push(format!("a rotation put the key {} in its place", successor.0));
    }
    remarks.push("a server without a good look at the database answers otherwise: see its /readyz".into());
    remarks
}
