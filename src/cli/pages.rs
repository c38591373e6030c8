//! `orchestrator completions`, `man` and `schema`: what packagers, shells and editors want.

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;

use super::{Code, Context, Failure, command};
use crate::model::message::quoted;
use crate::model::schema;

/// Options of `completions`.
#[derive(Debug, Clone, Args)]
pub(super) struct CompletionsArgs {
    /// For this shell.
    shell: Shell,
}

/// Options of `man`.
#[derive(Debug, Clone, Args)]
pub(super) struct ManArgs {
    /// The page of this verb [default: the program's].
    #[arg(value_name = "VERB")]
    verb: Vec<String>,
}

/// Options of `schema`.
#[derive(Debug, Clone, Args)]
pub(super) struct SchemaArgs {
    /// Of these files.
    #[arg(value_name = "KIND")]
    kind: SchemaKind,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SchemaKind {
    /// Programs/<job>.toml.
    Job,
    /// What is dropped into Common/Triggers.
    Trigger,
}

pub(super) fn schema(args: &SchemaArgs, context: &Context) -> Result<Code, Failure> {
    let schema = match args.kind {
        SchemaKind::Job => schema::job(),
        SchemaKind::Trigger => schema::trigger(),
    };
    context.out.line(&format!("{schema:#}"))?;
    Ok(Code::Done)
}

pub(super) fn completions(args: &CompletionsArgs, context: &Context) -> Result<Code, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "orchestrator", &mut text);
    context.out.bytes(&text)?;
    Ok(Code::Done)
}

pub(super) fn man(args: &ManArgs, context: &Context) -> Result<Code, Failure> {
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(page_of(&args.verb)?)
        .source(concat!("orchestrator ", env!("CARGO_PKG_VERSION")))
        .render(&mut page);
    rendered.map_err(|error| Failure::new(Code::Failed, format!("cannot write the manual: {error}"), ""))?;
    context.out.bytes(&page)?;
    Ok(Code::Done)
}

/// The command of a verb; its page goes by its whole name: `orchestrator-runs-list`.
fn page_of(verb: &[String]) -> Result<Command, Failure> {
    let mut page = command();
    // Gives every verb its whole name and its options, those for all included.
    page.build();
    for word in verb {
        let Some(inner) = page.find_subcommand(word).cloned() else {
            let name = quoted(&verb.join(" "));
            return Err(Failure::new(
                Code::Usage,
                format!("there is no verb {name}"),
                "`orchestrator --help` shows all",
            ));
        };
        page = inner;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_whole() {
        command().debug_assert();
    }

    #[test]
    fn each_verb_has_a_page() {
        let page = page_of(&["runs".to_owned(), "list".to_owned()]).unwrap();
        assert_eq!(page.get_display_name(), Some("orchestrator-runs-list"));
        assert_eq!(page_of(&["walk".to_owned()]).unwrap_err().code, Code::Usage);
    }
}
