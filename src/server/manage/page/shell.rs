//! The parts of every HTML document, with and without a session.

use maud::{DOCTYPE, Markup, html};

use super::assets::{ICON, SCRIPT, STYLE};

/// Renders the contents of `head`.
pub(super) fn head(title: &str) -> Markup {
    html! {
        meta charset="utf-8";
        meta name="viewport" content="width=device-width, initial-scale=1";
        meta name="color-scheme" content="light dark";
        title { (title) " · tenantgate" }
        link rel="icon" href=(ICON);
        link rel="stylesheet" href=(STYLE);
        script src=(SCRIPT) defer {}
    }
}

/// Renders a screen without navigation, for sign-in and errors.
pub(super) fn alone(title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head { (head(title)) }
            body.alone {
                main #content {
                    p.brand { img src=(ICON) alt="" width="28" height="28"; "tenantgate" }
                    div.card { (body) }
                }
            }
        }
    }
}
