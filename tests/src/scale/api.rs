//! Requests to the API server, as JSON goes over the wire: what answers hold is mostly nobody's business.

use std::path::Path;

use anyhow::{Context as _, Result};
use http::{Method, Request};
use kube::{
    Client, Config, Error,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;

use super::objects::{self, POLICY, Size, namespace_name, namespace_of, pod_name};

/// A request is tried so often: the machine may be busy.
const TRIES: u32 = 5;
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

/// The connection.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    pub(super) size: Size,
}

impl Api {
    /// Inside of a runtime.
    pub(super) async fn new(kubeconfig: &Path, size: Size) -> Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig).context("reading the kubeconfig")?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        Ok(Self { client, size })
    }

    async fn once(&self, method: &Method, path: &str, kind: &str, body: Vec<u8>) -> Result<String, Error> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(body)
            .map_err(Error::HttpError)?;
        self.client.request_text(request).await
    }

    /// Until it is done; what was done already, by an earlier try or run, is done.
    async fn send(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<String> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.once(&method, path, kind, body.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(Error::Api(status)) if done_before(&method, status.code) => {
                    return Ok(String::new());
                }
                Err(Error::Api(status)) if status.code < 500 && status.code != 429 => {
                    return Err(Error::Api(status)).with_context(|| format!("{method} {path}"));
                }
                Err(error) if tries >= TRIES => {
                    return Err(error).with_context(|| format!("{method} {path}"));
                }
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(200) * tries).await,
            }
        }
    }

    pub(super) async fn get(&self, path: &str) -> Result<String> {
        self.send(Method::GET, path, JSON, Vec::new()).await
    }

    /// How many pods there are.
    pub(super) async fn count_pods(&self) -> Result<usize> {
        let text = self.get("/api/v1/pods?limit=1").await?;
        let list: Value = serde_json::from_str(&text).context("reading a list of pods")?;
        let items = list["items"].as_array().map_or(0, Vec::len);
        Ok(items + list["metadata"]["remainingItemCount"].as_u64().unwrap_or(0) as usize)
    }

    /// What is there is as good as created.
    async fn create(&self, path: &str, object: &Value) -> Result<()> {
        self.send(Method::POST, path, JSON, object.to_string().into_bytes())
            .await
            .map(drop)
    }

    async fn patch(&self, path: &str, patch: &Value) -> Result<()> {
        self.send(Method::PATCH, path, MERGE, patch.to_string().into_bytes())
            .await
            .map(drop)
    }

    pub(super) async fn create_namespace(&self, space: usize) -> Result<()> {
        self.create("/api/v1/namespaces", &objects::namespace(space))
            .await
    }

    pub(super) async fn create_node(&self, node: usize) -> Result<()> {
        self.create("/api/v1/nodes", &self.size.node(node)).await
    }

    pub(super) async fn create_policy(&self, space: usize) -> Result<()> {
        let path = format!(
            "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
            namespace_name(space)
        );
        self.create(&path, &self.size.policy(space, None)).await
    }

    /// Creates a pod and gives it an address.
    pub(super) async fn create_pod(&self, pod: usize, life: usize) -> Result<()> {
        let path = format!("/api/v1/namespaces/{}/pods", namespace_name(namespace_of(pod)));
        self.create(&path, &self.size.pod(pod, life)).await?;
        self.set_status(pod, true, 0).await
    }

    pub(super) async fn set_status(&self, pod: usize, ready: bool, restarts: u64) -> Result<()> {
        let path = format!("{}/status", pod_path(pod));
        self.patch(&path, &self.size.status(pod, ready, restarts)).await
    }

    pub(super) async fn set_labels(&self, pod: usize, labels: Value) -> Result<()> {
        let labels = serde_json::json!({"metadata": {"labels": labels}});
        self.patch(&pod_path(pod), &labels).await
    }

    pub(super) async fn delete_pod(&self, pod: usize) -> Result<()> {
        // No kubelet would end a pod that is given time.
        let now = format!("{}?gracePeriodSeconds=0", pod_path(pod));
        self.send(Method::DELETE, &now, JSON, Vec::new()).await.map(drop)
    }

    /// Lets `client` send probes to the pods of the namespace `space`, or not any more.
    pub(super) async fn allow(&self, space: usize, client: Option<usize>) -> Result<()> {
        let path = format!(
            "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies/{POLICY}",
            namespace_name(space)
        );
        let policy = self.size.policy(space, client);
        self.patch(
            &path,
            &serde_json::json!({"spec": {"ingress": policy["spec"]["ingress"]}}),
        )
        .await
    }
}

fn done_before(method: &Method, code: u16) -> bool {
    (method == Method::POST && code == 409) || (method == Method::DELETE && code == 404)
}

fn pod_path(pod: usize) -> String {
    format!(
        "/api/v1/namespaces/{}/pods/{}",
        namespace_name(namespace_of(pod)),
        pod_name(pod)
    )
}
