//! Keeps the reference pages equal to the definitions of commands and options.
//!
//! Each page has parts between `<!-- generated: NAME -->` and `<!-- end -->`, which are rendered from clap's
//! definitions. `TENANTGATE_BLESS=1 cargo test --lib reference` rewrites them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command};

use super::args;

const START: &str = "<!-- generated: ";
const END: &str = "<!-- end -->";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

// Not `include_str!`: the image is built without these pages.
fn read(page: &str) -> String {
    std::fs::read_to_string(root().join(page)).expect("the page exists")
}

#[test]
fn the_reference_pages_show_the_commands_and_options_of_the_program() {
    let mut program = args::program();
    program.build();
    let serve = program.find_subcommand("serve").expect("a command of ours");
    for (page, parts) in [
        (
            "docs/reference/command-line.md",
            vec![("options of all commands", common(&program)), ("commands", commands(&program))],
        ),
        ("docs/reference/serve-options.md", vec![("options of serve", table(serve))]),
    ] {
        let committed = read(page);
        let rendered =
            parts.iter().fold(committed.clone(), |page, (name, text)| with_part(&page, name, text));
        if std::env::var_os("TENANTGATE_BLESS").is_some() {
            std::fs::write(root().join(page), &rendered).expect("the page is writable");
        } else {
            let remedy = "run `TENANTGATE_BLESS=1 cargo test --lib reference`";
            assert!(committed == rendered, "{page} does not show the program's definitions: {remedy}");
        }
    }
}

/// The hand-written tables of the page begin each row with the options that it explains.
#[test]
fn every_option_of_serve_is_explained_and_no_other() {
    let mut program = args::program();
    program.build();
    let serve = program.find_subcommand("serve").expect("a command of ours");
    let name = |arg: &Arg| arg.get_long().map(|name| format!("--{name}"));
    let defined: BTreeSet<_> = own(serve).filter_map(name).collect();
    let common: BTreeSet<_> =
        program.get_arguments().filter(|arg| arg.is_global_set()).filter_map(name).collect();
    let page = read("docs/reference/serve-options.md");
    let (_, explained) = page.rsplit_once(END).expect("a generated part");
    let cells = explained.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let explained = cells.flat_map(|names| names.split(", ")).map(|name| name.trim_matches('`').to_owned());
    let explained: BTreeSet<_> = explained.filter(|name| !common.contains(name)).collect();
    assert_eq!(defined, explained, "left: the program, right: docs/reference/serve-options.md");
}

/// Replaces one generated part of a page.
fn with_part(page: &str, name: &str, text: &str) -> String {
    let start = format!("{START}{name} -->\n");
    let (before, rest) = page.split_once(&start).unwrap_or_else(|| panic!("no part {name:?}"));
    let (_, after) = rest.split_once(END).expect("a part has an end");
    format!("{before}{start}{text}{END}{after}")
}

/// The options that every command takes, as a list.
fn common(program: &Command) -> String {
    program.get_arguments().filter(|arg| arg.is_global_set()).map(item).collect()
}

/// The arguments of one command, without help, version and the options of all commands.
fn own(command: &Command) -> impl Iterator<Item = &Arg> {
    let shown = |arg: &&Arg| {
        let id = arg.get_id().as_str();
        !arg.is_hide_set() && !arg.is_global_set() && id != "help" && id != "version"
    };
    command.get_arguments().filter(shown)
}

/// Every command that does something, with its arguments as a list.
fn commands(command: &Command) -> String {
    let mut text = String::new();
    for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help")
    {
        if below.has_subcommands() {
            text += &commands(below);
            continue;
        }
        let usage = below.clone().render_usage().to_string();
        let usage = flat(usage.trim_start_matches("Usage:"));
        let name = below.get_bin_name().unwrap_or_default();
        let about = below.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = write!(text, "\n### {name}\n\n{}. Usage: `{usage}`\n", flat(&about));
        if name.ends_with(" serve") {
            text += "\nSee [Options of serve](serve-options.md).\n";
        } else if own(below).next().is_some() {
            text.push('\n');
            text.extend(own(below).map(item));
        }
    }
    text
}

/// One argument as an item of a list.
fn item(arg: &Arg) -> String {
    let short = arg.get_short().map_or(String::new(), |letter| format!("`-{letter}`, "));
    let mut notes = vec![format!("{short}`{arg}`: {}", help(arg))];
    notes.extend(variable(arg).map(|name| format!("Variable {name}")));
    notes.extend(default(arg).map(|value| format!("Default {value}")));
    notes.extend(values(arg).map(|values| format!("Values: {values}")));
    format!("* {}.\n", notes.join(". "))
}

/// The options of one command as tables, one for each heading of its help.
fn table(command: &Command) -> String {
    let mut headings: Vec<Option<&str>> = Vec::new();
    for arg in own(command) {
        if !headings.contains(&arg.get_help_heading()) {
            headings.push(arg.get_help_heading());
        }
    }
    let mut text = String::new();
    for heading in headings {
        if let Some(heading) = heading {
            let _ = write!(text, "\n### {heading}\n");
        }
        text += "\n| option | variable | default | description |\n|---|---|---|---|\n";
        for arg in own(command).filter(|arg| arg.get_help_heading() == heading) {
            let cells = [
                format!("`{arg}`"),
                variable(arg).unwrap_or_default(),
                default(arg).unwrap_or_default(),
                help(arg),
            ];
            let _ = writeln!(text, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
        }
    }
    text + "\n"
}

fn help(arg: &Arg) -> String {
    flat(&arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default())
}

fn variable(arg: &Arg) -> Option<String> {
    arg.get_env().map(|name| format!("`{}`", name.display()))
}

fn default(arg: &Arg) -> Option<String> {
    let values: Vec<_> = arg.get_default_values().iter().map(|value| value.display().to_string()).collect();
    let shown = arg.get_action().takes_values() && !values.is_empty() && !arg.is_hide_default_value_set();
    shown.then(|| format!("`{}`", values.join(",")))
}

/// The values that the argument accepts, if the help does not show them already.
fn values(arg: &Arg) -> Option<String> {
    let names: Vec<_> =
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    (arg.get_action().takes_values() && !names.is_empty()).then(|| names.join(", "))
}

/// Text on one line.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
