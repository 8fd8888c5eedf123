//! The hub's protocol: what a repository has, and its files, from wherever they are kept.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue, LOCATION, RANGE, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use tokio::time::timeout;

use super::error::FetchError;
use super::file::Wanted;
use crate::cli::FetchOptions;

/// Files are kept elsewhere, and there elsewhere again, so often at most.
const REDIRECTS: usize = 8;
/// The one directory whose files are wanted too.
const TEMPLATES: &str = "additional_chat_templates/";
/// No list of files has more bytes.
const LISTING: usize = 16 << 20;

/// A hub.
pub(super) struct Hub {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    endpoint: String,
    home: Uri,
    token: Option<HeaderValue>,
    silence: Duration,
}

/// What a revision of a repository has.
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<Wanted>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Hub {
    pub fn new(options: &FetchOptions, silence: Duration) -> Result<Self, FetchError> {
        let endpoint = options.endpoint.trim_end_matches('/').to_owned();
        let wrong = |why: String| FetchError::Endpoint { endpoint: endpoint.clone(), why };
        let home: Uri = endpoint.parse().map_err(|e| wrong(format!("it is no URL: {e}")))?;
        if home.host().is_none() || !matches!(home.scheme_str(), Some("http" | "https")) {
            return Err(wrong("it is no http or https URL".into()));
        }
        let token = match &options.token_file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(FetchError::file(path))?;
                let mut value = HeaderValue::from_str(&format!("Bearer {}", text.trim())).map_err(|_| {
                    FetchError::file(path)(std::io::Error::other("it is no token: one line is due"))
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(silence));
        let provider = rustls::crypto::ring::default_provider();
        let https = match home.scheme_str() {
            Some("https") => HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(provider)
                .map_err(|e| wrong(format!("this machine's certificates cannot be used: {e}")))?,
            // A machine may have no certificates, and needs none then.
            _ => HttpsConnectorBuilder::new().with_tls_config(
                rustls::ClientConfig::builder_with_provider(provider.into())
                    .with_safe_default_protocol_versions()
                    .map_err(|e| wrong(e.to_string()))?
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth(),
            ),
        };
        let connector = https.https_or_http().enable_http1().wrap_connector(http);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, endpoint, home, token, silence })
    }

    /// Where a file of a commit is.
    pub fn url(&self, repository: &str, commit: &str, file: &str) -> String {
        format!("{}/{repository}/resolve/{commit}/{}", self.endpoint, escaped(file).replace("%2F", "/"))
    }

    /// What a revision has at its root, and of templates.
    pub async fn listing(&self, repository: &str, revision: &str) -> Result<Listing, FetchError> {
        let revision = escaped(revision);
        let url = format!("{}/api/models/{repository}/revision/{revision}?blobs=true", self.endpoint);
        let answer = self.get(&url, 0).await?;
        let body = timeout(self.silence, Limited::new(answer.into_body(), LISTING).collect()).await;
        let cut = |why: String| FetchError::Cut { url: url.clone(), why };
        let body = body.map_err(|_| cut("it takes too long".into()))?.map_err(|e| cut(e.to_string()))?;
        let info: Info = serde_json::from_slice(&body.to_bytes())
            .map_err(|e| FetchError::Listing(format!("{url}: {e}")))?;
        if info.sha.is_empty() || !info.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(FetchError::Listing(format!("{url}: {:?} is no commit", info.sha)));
        }
        // Names become files of the directory: none leads out of it, and none is ours.
        let is_plain = |s: &Sibling| {
            let name = s.rfilename.strip_prefix(TEMPLATES).unwrap_or(&s.rfilename);
            !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\'])
        };
        let wanted = |s: Sibling| Wanted {
            size: s.lfs.as_ref().map(|lfs| lfs.size).or(s.size),
            sha256: s.lfs.map(|lfs| lfs.sha256.to_ascii_lowercase()),
            name: s.rfilename,
        };
        let files = info.siblings.into_iter().filter(is_plain).map(wanted).collect();
        Ok(Listing { commit: info.sha, files })
    }

    /// An answer to a question for all of something, or for what is behind its first bytes.
    pub async fn get(&self, url: &str, from: u64) -> Result<Response<Incoming>, FetchError> {
        let cut = |why: String| FetchError::Cut { url: url.into(), why };
        let mut at: Uri = url.parse().map_err(|e| FetchError::Listing(format!("{url}: {e}")))?;
        for _ in 0..REDIRECTS {
            let mut request = Request::new(Empty::new());
            *request.uri_mut() = at.clone();
            let headers = request.headers_mut();
            headers.insert(USER_AGENT, HeaderValue::from_static("sluice-agent"));
            // The token is for the hub, and not for where it keeps its files.
            let is_home = at.authority() == self.home.authority() && at.scheme() == self.home.scheme();
            if let Some(token) = self.token.as_ref().filter(|_| is_home) {
                headers.insert(AUTHORIZATION, token.clone());
            }
            if from > 0 {
                headers.insert(
                    RANGE,
                    HeaderValue::try_from(format!("bytes={from}-")).map_err(|e| cut(e.to_string()))?,
                );
            }
            let answer = timeout(self.silence, self.client.request(request)).await;
            let answer = answer.map_err(|_| cut(format!("no answer within {:?}", self.silence)))?;
            let answer = answer.map_err(|e| cut(words(&e)))?;
            match answer.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Ok(answer);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(FetchError::Refused { url: url.into(), status: answer.status().as_u16() });
                }
                StatusCode::NOT_FOUND => return Err(FetchError::Missing(url.into())),
                status if status.is_redirection() => {
                    let to = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
                    at = to
                        .and_then(|to| joined(&at, to))
                        .ok_or_else(|| cut(format!("it is elsewhere ({status}), and that is no URL")))?;
                }
                status => return Err(cut(format!("the hub answers {status}"))),
            }
        }
        Err(cut(format!("it is elsewhere, {REDIRECTS} times over")))
    }
}

fn joined(at: &Uri, to: &str) -> Option<Uri> {
    if !to.starts_with('/') {
        return to.parse().ok().filter(|to: &Uri| to.host().is_some());
    }
    format!("{}://{}{to}", at.scheme_str()?, at.authority()?).parse().ok()
}

/// As a part of a URL's path.
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// An error and what it comes of.
fn words(e: &dyn std::error::Error) -> String {
    e.source().map_or_else(|| e.to_string(), |cause| format!("{e}: {}", words(cause)))
}
