//! Which operations there are, from the OpenAPI document: what isn't in it can't be reached, so nothing is forgotten.

use std::{collections::HashMap, sync::Arc};

use axum::http::Method;
use shared::ids::{TenantId, WorkerId};
use utoipa::openapi::{OpenApi, path::Operation as Documented};

/// Those that record themselves, in the transaction of what they do ([`super::accepted`]): too many for two commits more each.
const IN_ONE_ROW: [&str; 1] = ["send_message"];

/// Who calls an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Somebody of a tenant.
    Tenant,
    /// An operator.
    Operator,
    /// Anybody.
    Open,
}

/// An operation that may change something.
#[derive(Debug)]
pub(super) struct Operation {
    /// As the document names it.
    pub(super) id: String,
    pub(super) access: Access,
    /// Whether it has one row, which it writes itself.
    pub(super) in_one_row: bool,
    /// Which part of the path, counted from its beginning, is the id of what it is about; and whether that is a worker's name.
    place_of_id: Option<(usize, bool)>,
}

/// All of them.
pub(super) struct Operations(HashMap<String, Vec<(Method, Arc<Operation>)>>);

impl Operations {
    pub(super) fn of(document: &OpenApi) -> Self {
        let mut all: HashMap<String, Vec<_>> = HashMap::new();
        for (path, item) in &document.paths.paths {
            let methods = [
                (Method::POST, &item.post),
                (Method::PUT, &item.put),
                (Method::PATCH, &item.patch),
                (Method::DELETE, &item.delete),
            ];
            for (method, documented) in methods {
                let Some(documented) = documented else { continue };
                let operation = Arc::new(Operation::of(path, &method, documented));
                all.entry(path.clone()).or_default().push((method, operation));
            }
        }
        Self(all)
    }

    pub(super) fn find(&self, method: &Method, matched: &str) -> Option<Arc<Operation>> {
        let of_path = self.0.get(matched)?;
        of_path.iter().find(|(known, _)| known == method).map(|(_, operation)| Arc::clone(operation))
    }
}

impl Operation {
    fn of(path: &str, method: &Method, documented: &Documented) -> Self {
        let id = documented.operation_id.clone().unwrap_or_else(|| format!("{method} {path}"));
        let security = serde_json::to_value(&documented.security).unwrap_or_default();
        let has = |scheme: &str| {
            let mut schemes = security.as_array().into_iter().flatten();
            schemes.any(|requirement| requirement.get(scheme).is_some())
        };
        let access = if has("person") {
            Access::Tenant
        } else if has("operator") {
            Access::Operator
        } else {
            Access::Open
        };
        let parts: Vec<&str> = path.split('/').collect();
        let place_of_id = parts
            .iter()
            .position(|part| part.starts_with('{'))
            .map(|place| (place, place > 0 && parts.get(place - 1) == Some(&"workers")));
        Self { in_one_row: IN_ONE_ROW.contains(&id.as_str()), id, access, place_of_id }
    }

    /// What a request is about, by its path: kind and id. What hasn't the form of an id is left out, whatever it is.
    pub(super) fn resource(&self, path: &str) -> Option<(String, String)> {
        let (place, is_worker) = self.place_of_id?;
        let text = path.split('/').nth(place)?;
        if is_worker {
            return text.parse::<WorkerId>().ok().map(|id| ("worker".to_owned(), id.as_str().to_owned()));
        }
        resource(text)
    }

    /// Whether what it is about stands in its answer.
    pub(super) const fn is_named_in_the_answer(&self) -> bool {
        self.place_of_id.is_none()
    }
}

/// Kind and id, if it is one.
pub(super) fn resource(id: &str) -> Option<(String, String)> {
    let (prefix, number) = id.split_once('_')?;
    let is_prefix = prefix.len() == 3 && prefix.bytes().all(|byte| byte.is_ascii_lowercase());
    // Which number it is doesn't depend on the kind.
    if !is_prefix || format!("{}_{number}", TenantId::PREFIX).parse::<TenantId>().is_err() {
        return None;
    }
    let kind = match prefix {
        "ten" => "tenant",
        "usr" => "user",
        "ivt" => "invitation",
        "opr" => "operator",
        "exp" => "export",
        "key" => "api_key",
        "lgn" => "login",
        "ses" => "session",
        "msg" => "message",
        "whk" => "webhook",
        "dlv" => "delivery",
        "job" => "job",
        other => other,
    };
    Some((kind.to_owned(), id.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::ids::{SessionId, WebhookId};

    use super::*;

    #[test]
    fn every_operation_that_may_change_something_is_known() {
        let operations = Operations::of(&crate::app::document());
        let document = serde_json::to_value(crate::app::document()).unwrap();
        let mut known = 0;
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let method: Method = method.to_uppercase().parse().unwrap();
                let found = operations.find(&method, path);
                assert_eq!(found.is_some(), ![Method::GET, Method::HEAD].contains(&method), "{method} {path}");
                if let Some(found) = found {
                    assert_eq!(operation["operationId"], found.id.as_str());
                    known += 1;
                }
            }
        }
        assert!(known >= 50, "{known}");
        let sends = operations.0.values().flatten().filter(|(_, operation)| operation.in_one_row).count();
        assert_eq!(sends, IN_ONE_ROW.len());
    }

    #[test]
    fn what_a_request_is_about_is_in_its_path() {
        let operations = Operations::of(&crate::app::document());
        let (session, webhook) = (SessionId::new(), WebhookId::new());
        let about = |method, matched: &str, path: &str| operations.find(&method, matched).unwrap().resource(path);
        assert_eq!(
            about(Method::POST, "/api/v1/sessions/{id}/start", &format!("/api/v1/sessions/{session}/start")),
            Some(("session".into(), session.to_string()))
        );
        assert_eq!(
            about(Method::DELETE, "/api/v1/webhooks/{id}", &format!("/api/v1/webhooks/{webhook}")),
            Some(("webhook".into(), webhook.to_string()))
        );
        assert_eq!(
            about(Method::POST, "/api/v1/admin/workers/{id}/drain", "/api/v1/admin/workers/worker-1/drain"),
            Some(("worker".into(), "worker-1".into()))
        );
        assert_eq!(about(Method::DELETE, "/api/v1/webhooks/{id}", "/api/v1/webhooks/+15550001234"), None);
        assert_eq!(about(Method::POST, "/api/v1/sessions", "/api/v1/sessions"), None);
    }

    proptest! {
        #[test]
        fn nothing_but_ids_is_taken_over(text in ".{0,40}") {
            prop_assert_eq!(resource(&text), None);
        }
    }
}
