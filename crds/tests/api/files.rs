//! The committed files are those the types give.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn files(dir: &str) -> BTreeMap<String, String> {
    fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            (
                path.file_name().expect("a name").to_string_lossy().into_owned(),
                fs::read_to_string(&path).expect("a text"),
            )
        })
        .collect()
}

#[test]
fn the_yaml_is_up_to_date() {
    let expected: BTreeMap<_, _> = sluice_crds::all()
        .iter()
        .map(|crd| (sluice_crds::file_name(crd), sluice_crds::to_yaml(crd).unwrap()))
        .collect();
    assert!(
        files("yaml") == expected,
        "crds/yaml is not what the types say: run `cargo run -p sluice-operator -- crds --out crds/yaml`"
    );
    assert!(
        files("../charts/sluice/files/crds") == expected,
        "the chart's definitions are not those of crds/yaml: run `charts/check --update`"
    );
}

#[test]
fn the_reference_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md");
    assert!(
        fs::read_to_string(file).unwrap_or_default() == sluice_crds::reference(),
        "docs/api.md is not what the types say: run `cargo run -p sluice-operator -- api --out docs/api.md`"
    );
}
