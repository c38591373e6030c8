//! What every verb has: the volume, the options of every verb, and its output.

use std::path::PathBuf;

use super::access::explain;
use super::{Code, Failure, Global, Out};
use crate::client::{Client, default_device};
use crate::volume::layout::Layout;

/// What every verb has.
pub struct Context {
    /// The options of every verb.
    pub global: Global,
    /// The volume.
    pub client: Client,
    /// Where its answer goes.
    pub out: Out,
}

impl Context {
    /// Reads nothing yet.
    ///
    /// # Errors
    /// The working directory cannot be found.
    pub fn new(global: &Global, out: Out) -> Result<Self, Failure> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|error| {
                Failure::new(Code::Volume, format!("cannot find {}: {error}", path.display()), "give an absolute path")
            })
        };
        let layout = Layout { common: absolute(&global.common)?, programs: absolute(&global.programs)? };
        let mut client = Client::new(layout, default_device());
        client.note = Box::new(move |text| out.note(text));
        Ok(Self { global: global.clone(), client, out })
    }

    /// Makes the folders that are missing, and says so.
    ///
    /// # Errors
    /// Exit code 4.
    pub fn make_volume(&self) -> Result<(), Failure> {
        if self.client.make_volume().map_err(|error| explain(error, &self.client.layout))? {
            let common = self.client.layout.common.display();
            self.out.note(&format!("{common} was no volume yet: its folders were made"));
        }
        Ok(())
    }
}
