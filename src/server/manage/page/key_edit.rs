//! The form that changes a key.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Redirect, Response};
use maud::{Markup, html};

use super::failure::PageFailure;
use super::form::Form;
use super::key_forms::found;
use super::key_forms::{LIVES, expiry, setting};
use super::layout::{NavEntry, page};
use super::parts::{Field, labels_field, minutes, select, version, wrong};
use super::visit::{Visitor, VisitorExtension};
use crate::admin::version::of_key;
use crate::admin::{Expiry, KeyUpdate, Setting};
use crate::clock::Timestamp;
use crate::network::Networks;
use crate::permission::Permission;
use crate::plan::{PlanName, PlanRow};
use crate::record::KeyDetails;
use crate::scope::Scopes;

/// The option that keeps the current expiry.
const AS_IT_IS: &str = "keep";

/// Shows the form that changes a key. Needs `keys:write`.
pub(super) async fn edit(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
) -> Result<Markup, PageFailure> {
    let (key, _) = found(&visitor, &reference, Permission::KeysWrite).await?;
    let plans = visitor.admin.plans().await?;
    let form = filled_in(&key);
    Ok(screen(&visitor, &key, &plans, &form, None))
}

/// Returns the form with the values of a key.
fn filled_in(key: &KeyDetails) -> Form {
    let labels: Vec<_> = key.terms.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let begins = key.terms.not_before.map(|at| at.to_string()).unwrap_or_default();
    Form::of(&[
        ("version", &of_key(key)),
        ("name", &text(&key.name)),
        ("expiry", AS_IT_IS),
        ("not_before", &begins),
        ("scopes", &text(&key.terms.scopes)),
        ("networks", &text(&key.terms.networks)),
        ("plan", &text(&key.terms.plan)),
        ("labels", &labels.join("\n")),
    ])
}

fn screen(
    visitor: &Visitor,
    key: &KeyDetails,
    plans: &[PlanRow],
    form: &Form,
    failure: Option<&str>,
) -> Markup {
    let path = format!("/keys/{}", key.id.0);
    let field = |name: &'static str, label: &'static str, hint: &'static str| {
        Field { name, label, value: form.shown(name), hint, required: false }.show()
    };
    let now = key.expires_at.map_or("As it is: never".into(), |at| format!("As it is: {}", minutes(at)));
    let mut lives = vec![(AS_IT_IS, now.as_str())];
    lives.extend(LIVES.map(|(value, word)| (value, if value == "never" { "Never" } else { word })));
    let mut options = vec![("", "That of the tenant")];
    options.extend(plans.iter().map(|plan| (plan.name.as_str(), plan.name.as_str())));
    let name = key.name.as_deref().unwrap_or("(no name)");
    let body = html! {
        p.crumbs { a href="/keys" { "Keys" } " / " a href=(path) { (name) } }
        h1 { "Edit key" }
        (wrong(failure))
        form.card.narrow method="post" action={ (path) "/update" } {
            (version(form.shown("version")))
            (field("name", "Name", "What the key is for, such as production."))
            (select("expiry", "Expires, counted from now", form.get("expiry").unwrap_or(AS_IT_IS), &lives))
            (field("not_before", "Valid from", "An instant such as 2027-01-31T12:00:00Z. Empty: at once."))
            (field("scopes", "Scopes", "Separated by blanks, such as chat:read files:*. Empty: all."))
            (field("networks", "Networks", "From where it may be used, such as 192.0.2.0/24 2001:db8::/32. Empty: anywhere."))
            (select("plan", "Plan", form.shown("plan"), &options))
            (labels_field(form.shown("labels")))
            p.actions {
                button.primary type="submit" { "Save" }
                a.button href=(path) { "Cancel" }
            }
        }
    };
    page(visitor, NavEntry::Keys, "Edit key", &body)
}

/// Reads the form. An empty field removes the value.
fn asked_for(form: &Form) -> Result<KeyUpdate, PageFailure> {
    let labels = form.shown("labels").lines().map(str::trim).filter(|line| !line.is_empty());
    let instant = |text: &str| {
        Timestamp::parse(text).ok_or_else(|| {
            format!("{text:?} is not a valid instant: expected one such as 2027-01-31T12:00:00Z").into()
        })
    };
    Ok(KeyUpdate {
        name: or_unset(setting(form, "name", |text| Ok(text.to_owned()))?),
        expiry: match form.get("expiry") {
            None | Some(AS_IT_IS) => Expiry::Unsaid,
            Some(life) => expiry(life)?,
        },
        not_before: or_unset(setting(form, "not_before", instant)?),
        scopes: or_unset(setting(form, "scopes", |text| Ok(Scopes::parse(text)?))?),
        networks: or_unset(setting(form, "networks", |text| Ok(Networks::parse(text)?))?),
        plan: or_unset(setting(form, "plan", |text| Ok(PlanName::parse(text)?))?),
        labels: labels.map(str::to_owned).collect(),
        clear_labels: true,
        remove_labels: Vec::new(),
    })
}

fn or_unset<T>(setting: Setting<T>) -> Setting<T> {
    if matches!(setting, Setting::Keep) { Setting::Unset } else { setting }
}

/// Changes a key as its form says; an empty field is unset. Needs `keys:write`; an invalid or outdated form is shown
/// again with its error.
pub(super) async fn update(
    Extension(visitor): VisitorExtension,
    Path(reference): Path<String>,
    body: Bytes,
) -> Result<Response, PageFailure> {
    let (key, _) = found(&visitor, &reference, Permission::KeysWrite).await?;
    let form = Form::read(body);
    let id = key.id.0.to_string();
    let changed = match asked_for(&form) {
        Ok(asked) => visitor.admin_for(&form).patch_key(&id, &asked).await.map_err(PageFailure::from),
        Err(failure) => Err(failure),
    };
    match changed {
        Ok(_) => Ok(Redirect::to(&format!("/keys/{id}?done=updated")).into_response()),
        Err(failure) => {
            let failure = failure.of_form()?;
            let plans = visitor.admin.plans().await?;
            let again = screen(&visitor, &key, &plans, &form, Some(&failure.text));
            Ok((failure.status, again).into_response())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_is_unset_and_the_expiry_stays() {
        let asked =
            asked_for(&Form::read("name=&expiry=keep&scopes=&networks=&plan=&not_before=&labels=")).unwrap();
        assert_eq!(
            (&asked.name, &asked.scopes, &asked.plan),
            (&Setting::Unset, &Setting::Unset, &Setting::Unset)
        );
        assert_eq!((asked.expiry, asked.not_before), (Expiry::Unsaid, Setting::Unset));
        assert!(asked.clear_labels && asked.labels.is_empty());
        let asked = asked_for(&Form::read("name=a&not_before=2027-01-31T12:00:00Z&labels=a%3Db")).unwrap();
        assert_eq!((asked.name, asked.labels), (Setting::Set("a".into()), vec!["a=b".to_owned()]));
        for bad in ["not_before=soon", "networks=moon", "expiry=1w"] {
            assert!(asked_for(&Form::read(bad)).is_err(), "{bad}");
        }
    }
}
