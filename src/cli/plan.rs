//! The commands for plans.

use std::fmt::Write as _;

use super::values::WaitArgs;
use super::view::{Text, fixed_table};
use super::{Failure, Out, wait_for_servers};
use crate::admin::view::{PlanView, UsedPlanView};
use crate::admin::{Admin, LimitUpdate, Setting};
use crate::plan::{Limit, PlanName};

#[derive(clap::Subcommand)]
pub(super) enum PlanCommand {
    /// Create a plan
    Create {
        #[command(flatten)]
        plan: PlanRef,
        #[command(flatten)]
        limits: PlanLimitArgs,
    },
    /// Change the limits of a plan, for all tenants and keys that have it
    Update {
        #[command(flatten)]
        plan: PlanRef,
        #[command(flatten)]
        limits: PlanLimitArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Show all plans
    List,
    /// Show a plan, and how many tenants and keys have it
    Show(PlanRef),
    /// Delete a plan that no tenant and no key has
    Delete(PlanRef),
}

#[derive(clap::Args)]
pub(super) struct PlanRef {
    /// The name of the plan: 1 to 64 of a-z, 0-9, _ and -
    #[arg(value_name = "NAME", value_parser = PlanName::parse)]
    name: PlanName,
}

#[derive(clap::Args)]
#[expect(clippy::struct_excessive_bools, clippy::struct_field_names, reason = "each field is an option")]
pub(super) struct PlanLimitArgs {
    /// Requests, such as 100/MINUTE (SECOND, MINUTE, HOUR, DAY, MONTH, YEAR)
    #[arg(long, value_name = "L", value_parser = Limit::parse, conflicts_with = "no_request_limit")]
    request_limit: Option<Limit>,
    /// No limit of requests
    #[arg(long)]
    no_request_limit: bool,
    /// Tokens that a model reads and writes together, such as 1000000/DAY
    #[arg(long, value_name = "L", value_parser = Limit::parse, conflicts_with = "no_total_limit")]
    total_limit: Option<Limit>,
    /// No limit of all tokens
    #[arg(long)]
    no_total_limit: bool,
    /// Tokens that a model reads
    #[arg(long, value_name = "L", value_parser = Limit::parse, conflicts_with = "no_input_limit")]
    input_limit: Option<Limit>,
    /// No limit of tokens that a model reads
    #[arg(long)]
    no_input_limit: bool,
    /// Tokens that a model writes
    #[arg(long, value_name = "L", value_parser = Limit::parse, conflicts_with = "no_output_limit")]
    output_limit: Option<Limit>,
    /// No limit of tokens that a model writes
    #[arg(long)]
    no_output_limit: bool,
}

impl From<PlanLimitArgs> for LimitUpdate {
    fn from(args: PlanLimitArgs) -> Self {
        [
            Setting::said(args.request_limit, args.no_request_limit),
            Setting::said(args.total_limit, args.no_total_limit),
            Setting::said(args.input_limit, args.no_input_limit),
            Setting::said(args.output_limit, args.no_output_limit),
        ]
    }
}

/// Runs a command for plans.
pub(super) async fn plan(admin: &Admin, command: PlanCommand, out: &mut Out) -> Result<(), Failure> {
    match command {
        PlanCommand::Create { plan, limits } => {
            out.show(&PlanView::from(&admin.create_plan(&plan.name, &limits.into()).await?))
        }
        PlanCommand::Update { plan, limits, wait } => {
            let plan = admin.update_plan(&plan.name, &limits.into()).await?;
            wait_for_servers(admin, &wait).await?;
            out.show(&PlanView::from(&plan))
        }
        PlanCommand::List => out.show(&admin.plans().await?.iter().map(PlanView::from).collect::<Vec<_>>()),
        PlanCommand::Show(plan) => {
            let (plan, uses) = admin.plan(&plan.name).await?;
            out.show(&UsedPlanView::new(&plan, uses))
        }
        PlanCommand::Delete(plan) => out.show(&PlanView::from(&admin.delete_plan(&plan.name).await?)),
    }
}

impl PlanView {
    fn limits(&self) -> [(&'static str, &str); 4] {
        [
            ("requests", &self.request_limit),
            ("total", &self.total_limit),
            ("input", &self.input_limit),
            ("output", &self.output_limit),
        ]
        .map(|(name, limit)| (name, limit.as_deref().unwrap_or("-")))
    }
}

impl Text for PlanView {
    fn text(&self) -> String {
        let mut text = format!("name       {}", self.name);
        for (name, limit) in self.limits() {
            let _ = write!(text, "\n{name:<10} {limit}");
        }
        text
    }
}

impl Text for Vec<PlanView> {
    fn text(&self) -> String {
        if self.is_empty() {
            return "no plans yet: `tenantgate plan create NAME` creates one".into();
        }
        let rows = self.iter().map(|plan| {
            let [requests, total, input, output] = plan.limits().map(|(_, limit)| limit);
            [plan.name.as_str(), requests, total, input, output]
        });
        fixed_table(["NAME", "REQUESTS", "TOTAL", "INPUT", "OUTPUT"], rows)
    }
}

impl Text for UsedPlanView {
    fn text(&self) -> String {
        format!("{}\ntenants    {}\nkeys       {}", self.plan.text(), self.tenants, self.keys)
    }
}
