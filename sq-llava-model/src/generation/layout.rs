//! Which conversation template a checkpoint is used with.

use std::path::Path;

use sq_llava_data::{Layout, Template, TemplateChoice, TextTokenizer};

use crate::config::{ProjectorConfig, SqLlavaConfig};
use crate::error::ModelError;

impl SqLlavaConfig {
    /// The template that is `wanted`; else the one that the model was trained with, `v1_sq` for the
    /// released prototype extractor, the chat template that came with the tokenizer in `folder`, or
    /// `v1`. It says which in one line, and where the checkpoint's own differs from one of ours.
    ///
    /// # Errors
    /// If no template has the name that the configuration gives, or the checkpoint's own cannot be
    /// used.
    pub fn layout(
        &self,
        tokenizer: &TextTokenizer,
        folder: &Path,
        wanted: Option<TemplateChoice>,
    ) -> Result<Layout, ModelError> {
        let own = tokenizer.chat_template();
        let choice = match (wanted, &self.conversation) {
            (Some(choice), _) => choice,
            (None, Some(name)) => name.parse()?,
            (None, None) if matches!(self.projector, ProjectorConfig::Cluster(_)) => {
                Template::V1Sq.into()
            }
            (None, None) => own.map_or(Template::V1.into(), |own| {
                // Ours, as an export wrote it: pictures are then encoded as they were learnt.
                let ours = Template::written_as(own, tokenizer);
                ours.map_or(TemplateChoice::Checkpoint, Into::into)
            }),
        };
        let layout = Layout::of(choice, tokenizer, self.asking_role.clone());
        let layout = layout.map_err(|error| {
            let other = match choice {
                TemplateChoice::BuiltIn(_) => "",
                TemplateChoice::Checkpoint => "; one of ours is chosen with --template",
            };
            ModelError::Argument(format!("{}: {error}{other}", folder.display()))
        })?;
        match (wanted, &self.conversation) {
            (None, None) if choice == TemplateChoice::Checkpoint => {
                tracing::info!("conversations in the checkpoint's own chat_template");
            }
            // Nobody wonders about what they said themselves.
            _ => tracing::debug!("conversation template {choice}"),
        }
        // A checkpoint that names its template says what its chat template is by that.
        let named = self.conversation.as_deref() == Some(choice.name());
        if let (Layout::BuiltIn(template), false, Some(theirs)) = (&layout, named, own)
            && let Some(difference) = template.difference(theirs, tokenizer)
        {
            tracing::warn!(
                "{}: the chat_template of the checkpoint is not the conversation template {template} that is used: {difference}; it is chosen with --template checkpoint",
                folder.display()
            );
        }
        Ok(layout)
    }
}
