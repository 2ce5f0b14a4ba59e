//! The HTML frame of all screens.

use maud::{DOCTYPE, Markup, html};

use super::assets::ICON;
use super::shell::head;
use super::visit::Visitor;
use crate::permission::{About, Permission};

/// The entries of the navigation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NavEntry {
    Overview,
    Tenants,
    Keys,
    Routes,
    Plans,
    Usage,
    Audit,
    AdminKeys,
}

impl NavEntry {
    const ALL: [Self; 8] = [
        Self::Overview,
        Self::Tenants,
        Self::Keys,
        Self::Routes,
        Self::Plans,
        Self::Usage,
        Self::Audit,
        Self::AdminKeys,
    ];

    /// Returns the path, the label, and the permission that it needs.
    fn entry(self) -> (&'static str, &'static str, Option<Permission>) {
        match self {
            Self::Overview => ("/", "Overview", None),
            Self::Tenants => ("/tenants", "Tenants", Some(Permission::TenantsRead)),
            Self::Keys => ("/keys", "Keys", Some(Permission::KeysRead)),
            Self::Routes => ("/routes", "Routes", Some(Permission::RoutesRead)),
            Self::Plans => ("/plans", "Plans", Some(Permission::PlansRead)),
            Self::Usage => ("/usage", "Usage", Some(Permission::UsageRead)),
            Self::Audit => ("/audit", "Audit log", Some(Permission::AuditRead)),
            Self::AdminKeys => ("/admin-keys", "Management keys", Some(Permission::AdminKeysRead)),
        }
    }
}

/// Renders a screen of a signed-in visitor.
pub(super) fn page(visitor: &Visitor, place: NavEntry, title: &str, body: &Markup) -> Markup {
    let key = &visitor.caller.key;
    html! {
        (DOCTYPE)
        html lang="en" {
            head { (head(title)) }
            body.framed {
                a.skip href="#content" { "Skip to content" }
                header.side {
                    a.brand href="/" { img src=(ICON) alt="" width="22" height="22"; "tenantgate" }
                    nav aria-label="Main" {
                        ul {
                            @for other in NavEntry::ALL {
                                @let (path, word, needs) = other.entry();
                                @if needs.is_none_or(|needs| visitor.may(needs, About::Shared)) {
                                    li {
                                        @if other == place {
                                            a href=(path) aria-current="page" { (word) }
                                        } @else {
                                            a href=(path) { (word) }
                                        }
                                    }
                                }
                            }
                        }
                    }
                    div.who {
                        span.who-name title="The management key that is signed in" { (key.name) }
                        form method="post" action="/sign-out" { button.quiet type="submit" { "Sign out" } }
                    }
                }
                main #content tabindex="-1" { (body) }
            }
        }
    }
}
