//! The schemas that lie in the repository are those that the program prints.

use std::path::Path;
use std::process::Command;

#[test]
fn the_committed_schemas_are_those_of_this_program() {
    for kind in ["job", "trigger"] {
        let output = Command::new(env!("CARGO_BIN_EXE_orchestrator")).args(["schema", kind]).output().unwrap();
        let name = format!("schemas/{kind}.schema.json");
        let committed = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(&name)).unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && printed.ends_with("}\n"), "{printed}");
        let committed = String::from_utf8(committed).unwrap();
        let same = committed.lines().zip(printed.lines()).take_while(|(a, b)| a == b).count();
        assert!(committed == printed, "{name} differs from line {}: orchestrator schema {kind} > {name}", same + 1);
    }
}
