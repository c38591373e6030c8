//! What is a secret, where it is found, and what its folder grants.
#![expect(clippy::disallowed_methods, reason = "a test lays files out as a person or an engine would")]

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::volume::os::OsDisk;

struct Home {
    home: tempfile::TempDir,
    places: Places,
}

impl Home {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let places = Places { mounted: home.path().join("run"), shared: home.path().join("Common/Security/secrets") };
        std::fs::create_dir_all(&places.mounted).unwrap();
        std::fs::create_dir_all(&places.shared).unwrap();
        Self { home, places }
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.home.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn read(&self, name: &str) -> Result<String, String> {
        let name = SecretName::new(name).unwrap();
        self.places.read(&OsDisk::new(), &name).map_err(|unusable| unusable.to_string())
    }

    #[track_caller]
    fn refused(&self, name: &str, why: &str) {
        let said = self.read(name).unwrap_err();
        assert!(said.starts_with(&format!("the secret {name} ")) && said.contains(why), "{said}");
        assert!(!said.contains("canary"), "{said}");
    }
}

#[test]
fn a_secret_is_what_its_file_holds_and_the_mounted_one_comes_first() {
    let home = Home::new();
    let missing = home.read("a.B_1-x").unwrap_err();
    for place in ["/run/a.B_1-x", "/Common/Security/secrets/a.B_1-x"] {
        assert!(missing.contains(place), "{missing}");
    }
    home.write("Common/Security/secrets/a", "shared\n\n");
    assert_eq!(home.read("a").unwrap(), "shared\n", "one line feed is no part of it");
    home.write("run/a", "mounted");
    assert_eq!(home.read("a").unwrap(), "mounted");
    home.write("Common/Security/secrets/b", "");
    assert_eq!(home.read("b").unwrap(), "");
    std::fs::remove_dir_all(&home.places.shared).unwrap();
    home.refused("c", "is not there");
}

#[test]
fn what_is_no_text_of_a_regular_file_is_refused_and_never_told() {
    let home = Home::new();
    home.write("Common/Security/secrets/long", "x".repeat(64 * 1024));
    assert_eq!(home.read("long").unwrap().len(), 64 * 1024);
    home.write("Common/Security/secrets/longer", "canary".repeat(11_000));
    home.refused("longer", "has 66000 bytes, expected at most 65536");
    home.write("Common/Security/secrets/nul", b"canary\0");
    home.refused("nul", "NUL at byte 6");
    home.write("Common/Security/secrets/latin", b"canary\xff");
    home.refused("latin", "not UTF-8 at offset 6");
    home.write("Common/Security/secrets/folder/x", "canary");
    home.refused("folder", "is a folder");
    // What is in the first place counts, whatever the second has.
    home.write("run/both/x", "");
    home.write("Common/Security/secrets/both", "canary");
    home.refused("both", "is a folder");
}

#[test]
fn links_are_followed_where_engines_make_them_and_only_inside() {
    let home = Home::new();
    home.write("run/..version/token", "value");
    symlink("..version", home.places.mounted.join("..data")).unwrap();
    symlink("..data/token", home.places.mounted.join("token")).unwrap();
    assert_eq!(home.read("token").unwrap(), "value");
    home.write("outside", "canary");
    symlink("../outside", home.places.mounted.join("out")).unwrap();
    home.refused("out", "is a link out of");
    symlink("nowhere", home.places.mounted.join("broken")).unwrap();
    home.refused("broken", "is a symbolic link");
    // In the shared folder none is.
    home.write("Common/Security/secrets/real", "canary");
    symlink("real", home.places.shared.join("link")).unwrap();
    home.refused("link", "is a symbolic link");
    std::fs::rename(&home.places.shared, home.home.path().join("moved")).unwrap();
    symlink(home.home.path().join("moved"), &home.places.shared).unwrap();
    home.refused("real", "no link to one");
}

#[test]
fn the_folder_is_made_closed_and_what_grants_too_much_is_found() {
    let home = tempfile::tempdir().unwrap();
    let layout = Layout { common: home.path().join("Common"), programs: home.path().to_owned() };
    let disk = OsDisk::new();
    assert_eq!(exposed(&disk, &layout), Exposed::default());
    make_folder(&disk, &layout);
    let (outer, inner) = (layout.secrets().parent().unwrap().to_owned(), layout.secrets());
    assert_eq!([&outer, &inner].map(|path| os::mode_of(path)), [Some(0o700); 2]);
    let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    for (name, mode) in [("good", 0o600), ("bad", 0o640)] {
        std::fs::write(inner.join(name), "canary").unwrap();
        set(&inner.join(name), mode);
    }
    let bad = (inner.join("bad"), 0o640);
    assert_eq!(exposed(&disk, &layout), Exposed { paths: vec![bad.clone()], is_open: false });
    set(&inner, 0o750);
    make_folder(&disk, &layout);
    let found = exposed(&disk, &layout);
    assert_eq!((found.paths, found.is_open), (vec![(inner.clone(), 0o750), bad], false), "it is left as it is");
    set(&outer, 0o755);
    assert!(exposed(&disk, &layout).is_open);
}
