//! The screen that shows the reason of a rejection by the decision id that the client got.

use axum::Extension;
use axum::extract::RawQuery;
use maud::{Markup, html};
use uuid::Uuid;

use super::failure::PageFailure;
use super::form::Form;
use super::layout::{NavEntry, page};
use super::parts::{meaning, minutes, spaced, when};
use super::visit::{Visitor, VisitorExtension};
use crate::admin::{AdminError, RefusedRequest};
use crate::permission::{About, Permission};

/// Shows the form for a decision id, and the refusal that it belongs to. Needs `keys:read`.
pub(super) async fn show(
    Extension(visitor): VisitorExtension,
    RawQuery(query): RawQuery,
) -> Result<Markup, PageFailure> {
    visitor.check(Permission::KeysRead, About::Shared)?;
    let query = Form::read(query.unwrap_or_default());
    let answer = match query.get("id") {
        None => None,
        Some(id) => Some(answer(&visitor, id).await?),
    };
    let body = html! {
        h1 { "Find a refusal" }
        p.lead { "A client that is refused gets no reason, but a decision id. Here is what it means." }
        (form(query.shown("id")))
        @if let Some(answer) = answer { (answer) }
    };
    Ok(page(&visitor, NavEntry::Usage, "Find a refusal", &body))
}

/// Renders the form for a decision id.
pub(super) fn form(id: &str) -> Markup {
    html! {
        form.card method="get" action="/refusals" {
            label for="id" { "Decision id" }
            div.asked {
                input #id type="text" name="id" value=(id) required autocomplete="off" spellcheck="false" aria-describedby="id-hint";
                button type="submit" { "Find" }
            }
            p.hint #id-hint { "The client has it in the header x-llmcore-decision-id." }
        }
    }
}

async fn answer(visitor: &Visitor, text: &str) -> Result<Markup, PageFailure> {
    let Ok(id) = Uuid::parse_str(text) else {
        return Ok(html! {
            p.notice.bad role="alert" { "That is not a decision id: it looks like 019f0c8a-1b2c-7d3e-8f40-5a6b7c8d9e0f." }
        });
    };
    match visitor.admin.refusal(id).await {
        Ok(refused) => Ok(found(visitor, &refused)),
        Err(AdminError::Missing(_)) => Ok(not_found(id)),
        Err(error) => Err(error.into()),
    }
}

fn found(visitor: &Visitor, refused: &RefusedRequest) -> Markup {
    let (at, now) = (refused.at, visitor.admin.now());
    html! {
        section.card aria-labelledby="reason" {
            h2 #reason { "Refused: " (spaced(&refused.reason)) }
            p role="status" { (meaning(&refused.reason)) }
            dl.facts {
                div { dt { "When" } dd { (minutes(at)) " (" (when(at, now)) ")" } }
                div { dt { "Reason" } dd { code { (refused.reason) } } }
                @if let Some(key) = &refused.key {
                    div { dt { "Key" } dd {
                        a href={ "/keys/" (key.id.0) } { (key.name.as_deref().unwrap_or("(no name)")) }
                        " " code { (key.prefix) }
                    } }
                } @else {
                    div { dt { "Key" } dd { span.muted { "none was proven" } } }
                }
            }
        }
    }
}

fn not_found(id: Uuid) -> Markup {
    html! {
        p.notice role="status" {
            "There is no refusal with this id here, or your management key does not see it. Refusals arrive within seconds and \
             stay for 3 days. Of many in the same minute only some are kept; the logs of tenantgate and Envoy have all: "
            code { "tenantgate explain --decision-id " (id) " --log FILE" } "."
        }
    }
}
