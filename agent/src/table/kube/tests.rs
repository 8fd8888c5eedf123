//! The source before an API server that fails in every way.

use std::path::Path;

use kube::Config;
use tokio::time::sleep;

use super::fake::Api;
use super::testing::{list, scope, slice};
use super::*;

const SOON: Duration = Duration::from_secs(30);

async fn source(api: &Api, cache: &Path) -> KubeSource {
    let uri: axum::http::Uri = format!("http://{}", api.at).parse().unwrap();
    let connect = move || {
        let client = Client::try_from(Config::new(uri.clone())).map_err(|e| e.to_string());
        async { client }
    };
    KubeSource::with(scope(), Some(cache.into()), connect).await
}

/// The table, when it is so.
async fn becomes(source: &KubeSource, is: impl Fn(&Table) -> bool) -> Arc<Table> {
    let mut tables = source.watch();
    match timeout(SOON, tables.wait_for(|t| is(t))).await {
        Ok(table) => Arc::clone(&table.unwrap()),
        Err(_) => panic!("{:?}, {:?}", source.trouble(), source.watch().borrow()),
    }
}

fn generations(table: &Table) -> Vec<u64> {
    std::iter::once(table.generation).chain(table.slices.iter().map(|s| s.generation)).collect()
}

async fn trouble(source: &KubeSource, says: Option<&str>) {
    let mut states = source.shared.state.subscribe();
    let is_so = |state: &State| match (says, &state.trouble) {
        (Some(says), Some(said)) => said.contains(says),
        (says, said) => says.is_none() && said.is_none(),
    };
    if timeout(SOON, states.wait_for(is_so)).await.is_err() {
        panic!("{says:?}: {:?}", source.trouble());
    }
}

#[tokio::test]
async fn the_table_follows_the_objects_whatever_the_api_server_does() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("table.yaml");
    let mut api = Api::new();
    let source = source(&api, &cache).await;
    trouble(&source, Some("the API server does not answer")).await;
    assert_eq!(*source.watch().borrow(), Arc::default());

    // It comes, has nothing, and then all of it, in the order of the operator.
    api.start();
    trouble(&source, None).await;
    assert!(!cache.exists());
    api.put(&list("l", 100, &["a0", "e0"]));
    api.put(&slice("s0", 100, [0, 1], &["e0"]));
    api.put(&slice("s1", 101, [1, 2], &["e0"]));
    let table = becomes(&source, |t| t.slices.len() == 2).await;
    assert_eq!(generations(&table), [100, 100, 101]);
    assert_eq!(parse(&std::fs::read_to_string(&cache).unwrap()).unwrap(), *table, "it is kept");

    // What cannot be read is left out, and what is inconsistent not taken; what follows is.
    let mut garbage = slice("s1", 102, [1, 2], &["e0"]);
    garbage["spec"]["units"] = "many".into();
    api.put(&garbage);
    api.put(&slice("s0", 103, [0, 1], &["e1"]));
    api.put(&list("l", 104, &["a0", "e0", "e1"]));
    let table = becomes(&source, |t| t.generation == 104).await;
    assert_eq!(generations(&table), [104, 103, 101]);

    // The watch is cut, and goes on where it was.
    let lists = api.lists();
    api.cut();
    api.put(&slice("s1", 105, [1, 2], &["e1"]));
    becomes(&source, |t| generations(t) == [104, 103, 105]).await;
    assert_eq!(api.lists(), lists);

    // What it missed is forgotten: all is listed anew, and what was deleted meanwhile is still in the table.
    api.refuse(Some(500));
    trouble(&source, Some("the API server answers 500: not now")).await;
    api.put(&slice("s0", 106, [0, 1], &["e0", "e1"]));
    api.delete("s1");
    api.forget();
    api.refuse(None);
    becomes(&source, |t| generations(t) == [104, 106, 105]).await;
    assert!(api.lists() > lists);
    trouble(&source, None).await;

    // An object made anew begins above what was.
    api.put(&slice("s1", 2, [1, 2], &[]));
    api.delete("s1");
    api.put(&slice("s1", 200, [1, 2], &["e0"]));
    becomes(&source, |t| generations(t) == [104, 106, 200]).await;

    api.refuse(Some(403));
    trouble(&source, Some("let its service account list and watch")).await;
    let refused = source.replace(String::new()).unwrap_err().to_string();
    assert!(refused.contains("of ExpertPlacements of ns/m, cohort c1: it is only read here"), "{refused}");
}

#[tokio::test]
async fn a_start_without_the_api_server_begins_with_what_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("table.yaml");
    let mut api = Api::new();
    api.start();
    api.put(&list("l", 7, &["a0", "e0"]));
    api.put(&slice("s", 8, [0, 1], &["e0"]));
    let first = source(&api, &cache).await;
    becomes(&first, |t| generations(t) == [7, 8]).await;
    drop(first);
    api.stop();
    let second = source(&api, &cache).await;
    assert_eq!(generations(&second.watch().borrow()), [7, 8]);

    // What is there is newer, and the one who begins while it is there begins with that.
    api.put(&slice("s", 9, [0, 1], &[]));
    api.start();
    becomes(&second, |t| generations(t) == [7, 9]).await;
    drop(second);
    api.put(&slice("s", 10, [0, 1], &[]));
    let third = source(&api, &cache).await;
    assert_eq!(generations(&third.watch().borrow()), [7, 10]);
    drop(third);

    // What is kept badly, or of another, is none.
    let text = std::fs::read_to_string(&cache).unwrap();
    api.stop();
    for wrong in [text.replace("cohort c1", "cohort c2"), text.replace("workers:", "workers: ["), "{".into()]
    {
        std::fs::write(&cache, wrong).unwrap();
        let fourth = source(&api, &cache).await;
        assert_eq!(fourth.watch().borrow().generation, 0);
    }
    api.start();
    let fifth = source(&api, &cache).await;
    becomes(&fifth, |t| generations(t) == [7, 10]).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(std::fs::read_to_string(&cache).unwrap(), text);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
}
