//! `spillway project`: limits that several keys of a running node share.
//! Invariant: a project has no secret; only its keys open anything.

use super::keys::{LIMITS, ListArguments, OneArguments, show};
use super::limits::{Clear, LimitArguments, checked_id};
use super::table::{self, Show};
use super::{Listing, Place, Verdict};
use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::Value;

#[derive(Debug, Subcommand)]
pub(crate) enum ProjectCommand {
    /// Make a project; `spillway key create --project ID` makes its keys
    Create(CreateArguments),
    /// Show every project, its budget and what its keys spent
    List(ListArguments),
    /// Show all that is known of one project
    Show(OneArguments),
    /// Change a project's limits; what is not named stays
    Update(UpdateArguments),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    /// What you call it
    #[arg(long)]
    name: String,
    #[command(flatten)]
    limits: LimitArguments,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArguments {
    /// The project's id, from `spillway project list`
    id: String,
    /// What you call it
    #[arg(long)]
    name: Option<String>,
    /// Refuse its keys until that is taken back with `--block false`
    #[arg(long, value_name = "BOOL")]
    block: Option<bool>,
    /// A limit to take away; repeat for more
    #[arg(long, value_enum, value_name = "LIMIT")]
    clear: Vec<Clear>,
    #[command(flatten)]
    limits: LimitArguments,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

/// Runs `spillway project …`.
pub(crate) async fn run(command: ProjectCommand) -> Result<Verdict> {
    match command {
        ProjectCommand::Create(arguments) => {
            let mut wanted = arguments.limits.fields()?;
            wanted.insert("name".into(), arguments.name.as_str().into());
            let made = arguments.place.admin()?.post("/admin/projects", &wanted.into()).await?;
            show(&made, arguments.listing.json)?;
        }
        ProjectCommand::List(arguments) => {
            let projects = arguments.place.admin()?.get("/admin/projects").await?;
            let mut columns = vec![("ID", "/id", Show::Plain), ("NAME", "/name", Show::Plain)];
            columns.extend(LIMITS);
            let none = "no projects yet; make one with `spillway project create`";
            table::list(&projects, "projects", arguments.listing.json, &columns, none)?;
        }
        ProjectCommand::Show(arguments) => {
            let path = format!("/admin/projects/{}", checked_id(&arguments.id)?);
            show(&arguments.place.admin()?.get(&path).await?, arguments.listing.json)?;
        }
        ProjectCommand::Update(arguments) => {
            let mut fields = arguments.limits.fields()?;
            if let Some(name) = &arguments.name {
                fields.insert("name".into(), name.as_str().into());
            }
            if let Some(block) = arguments.block {
                fields.insert("blocked".into(), block.into());
            }
            fields.extend(arguments.clear.iter().map(|clear| (clear.field().to_owned(), Value::Null)));
            let path = format!("/admin/projects/{}", checked_id(&arguments.id)?);
            show(&arguments.place.admin()?.patch(&path, &fields.into()).await?, arguments.listing.json)?;
        }
    }
    Ok(Verdict::Done)
}
