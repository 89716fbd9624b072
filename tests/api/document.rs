//! The OpenAPI document and its browser; and that the API does what the document says, in the eyes of a
//! program that tries to prove the opposite.

use std::process::Command;

use serde_json::{Value, json};

use crate::common::{Db, Receiver, eventually, skip};
use crate::{ADMIN, Api};

/// Test cases for one operation: what it takes to find what is easily found.
const CASES: &str = "15";

#[tokio::test]
async fn the_document_describes_every_operation_with_all_its_errors() {
    let db = Db::new().await;
    let api = Api::on(&db).await;
    let document = api.document().await;
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let place = format!("{method} {path}");
            ids.push(operation["operationId"].as_str().unwrap());
            for text in ["summary", "description"] {
                assert!(operation[text].as_str().is_some_and(|text| !text.is_empty()), "{place}: {text}");
            }
            let responses = operation["responses"].as_object().unwrap();
            for status in ["400", "401", "403", "404", "503"] {
                let schema = &responses[status]["content"]["application/problem+json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/Problem", "{place}: {status}");
            }
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                assert!(parameter["description"].is_string(), "{place}: {parameter}");
            }
        }
    }
    let operations = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), operations, "{ids:?}");
    // Whatever is referred to is there.
    let text = document.to_string();
    for (at, _) in text.match_indices("#/components/schemas/") {
        let name = text[at..].split('"').next().unwrap().rsplit('/').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}

#[tokio::test]
async fn the_browser_of_the_document_needs_nothing_from_elsewhere() {
    let db = Db::new().await;
    let api = Api::on(&db).await;
    let moved = api.send("GET", "/api/docs", &[], b"").await;
    assert_eq!((moved.status, moved.header("location")), (308, Some("/api/docs/")));
    let Value::String(page) = api.send("GET", "/api/docs/", &[], b"").await.success(200) else { panic!() };
    let sources: Vec<&str> =
        page.split(['"', '\'']).filter(|text| text.ends_with(".js") || text.ends_with(".css")).collect();
    assert!(sources.len() >= 4, "{page}");
    for source in sources {
        assert!(!source.contains("//"), "{source} is elsewhere");
        let path = format!("/api/docs/{}", source.trim_start_matches("./"));
        api.send("GET", &path, &[], b"").await.success(200);
    }
    let Value::String(start) =
        api.send("GET", "/api/docs/swagger-initializer.js", &[], b"").await.success(200)
    else {
        panic!()
    };
    assert!(start.contains("/api/openapi.json") && !start.contains("petstore"), "{start}");
}

/// What schemathesis is told: an organization with one thing of each kind, and which answers to a bad request
/// are right.
fn configuration(org: &str, ids: &[(&str, String)]) -> String {
    let mut text = format!("[parameters]\n\"path.org_id\" = \"{org}\"\n");
    for (tag, id) in ids {
        text +=
            &format!("[[operations]]\ninclude-tag = \"{tag}\"\nparameters = {{ \"path.id\" = \"{id}\" }}\n");
    }
    // 412: whether somebody else was first is looked at before the body is.
    text += "[checks.negative_data_rejection]\n";
    text += "expected-statuses = [\"400\", \"401\", \"403\", \"404\", \"405\", \"409\", \"412\", \"413\", ";
    text += "\"415\"]\n";
    // That a range must not end before it begins, or that an employee must exist, no schema can say.
    text += "[checks.positive_data_acceptance]\nenabled = false\n";
    // After ten wrong tokens they are answered by 429.
    text += "[checks.ignored_auth]\nenabled = false\n";
    // Requests go to the things above, also right after it has created others and deleted these.
    text + "[checks.ensure_resource_availability]\nenabled = false\n"
}

/// Whatever destinations are created, nothing is to be sent anywhere but to this receiver.
fn hooks(url: &str) -> String {
    format!(
        r#"import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if isinstance(body, dict):
        if isinstance(body.get("url"), str) and body["url"].startswith("http"):
            body["url"] = "{url}"
        if isinstance(body.get("auth_config"), dict) and "token_url" in body["auth_config"]:
            body["auth_config"]["token_url"] = "{url}"
"#
    )
}

#[tokio::test]
async fn schemathesis_finds_no_fault_as_admin_and_as_tenant() {
    if Command::new("st").arg("--version").output().is_err() {
        skip("schemathesis is not on the PATH (PyPI: schemathesis)");
        return;
    }
    let db = Db::new().await;
    let receiver = Receiver::start();
    let api = Api::on(&db).await;
    let document = format!("http://{}/api/openapi.json", api.posthaste.address().unwrap());
    for is_admin in [true, false] {
        // What it deletes as the one is there for the other.
        let org = db.org().await;
        let destination = db.destination(org, receiver.url("/")).insert().await;
        let event = db.event(org, "a.b", "{}").await;
        let its = format!("log_id = '{event}' AND status = 'delivered'");
        eventually("it is delivered", async || db.deliveries(&its).await == 1).await;
        let delivery = db.text(&format!("SELECT id FROM webhook_deliveries WHERE {its}")).await.unwrap();
        let replay = format!("/destinations/{destination}/replay");
        let job = api.post(org, &replay, &json!({})).await.success(202);
        let ids = [
            ("destinations", destination.to_string()),
            ("deliveries", delivery),
            ("events", event.to_string()),
            ("jobs", job["id"].as_str().unwrap().to_owned()),
        ];
        let token = if is_admin { ADMIN.to_owned() } else { api.key(org, "write").await };
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("schemathesis.toml");
        std::fs::write(directory.path().join("hooks.py"), hooks(&receiver.url("/"))).unwrap();
        std::fs::write(&config, configuration(&org.to_string(), &ids)).unwrap();
        let mut command = Command::new("st");
        command.current_dir(directory.path()).arg("--config-file").arg(&config).arg("run").arg(&document);
        command.args(["-H", &format!("Authorization: Bearer {token}"), "-n", CASES, "--seed", "1"]);
        command.args(["--request-timeout", "20"]);
        if !is_admin {
            // To a tenant there is nothing there, whatever is asked.
            command.args(["--exclude-tag", "keys"]);
        }
        command.env("SCHEMATHESIS_HOOKS", directory.path().join("hooks.py"));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains(" passed"), "{said}");
        let elsewhere = "SELECT count(*) FROM webhook_destinations WHERE url NOT LIKE 'http://127.0.0.1:%'";
        assert_eq!(db.number(elsewhere).await, 0, "requests may have gone elsewhere");
    }
    // What it has left in destinations may go on failing; nothing of it is in the way of anything.
    assert_eq!(api.send("GET", "/readyz", &[], b"").await.status, 200);
}
