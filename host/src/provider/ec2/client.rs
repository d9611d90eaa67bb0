//! The AWS client: credentials, region, time limits, retries. Built once, at the first call.
//!
//! It honours AWS_ENDPOINT_URL, and needs no metadata service unless credentials come from nowhere else. It makes no
//! EC2 call of its own.

use std::time::Duration;

use aws_config::{
    BehaviorVersion, Region, SdkConfig, environment::region::EnvironmentVariableRegionProvider,
    meta::region::RegionProviderChain, profile::ProfileFileRegionProvider, retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_credential_types::provider::{ProvideCredentials, error::CredentialsError};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

use crate::{Error, units::Span};

/// Where nothing names a region: the one where most of AWS is, and where a Learner Lab's key `vockey` is.
const REGION_DEFAULT: &str = "us-east-1";
/// Attempts of one call. Throttling of a lab's few calls ends within seconds; standard mode's waits double from
/// [`BACKOFF_FIRST`] to [`BACKOFF_LAST`]. Adaptive mode could stall calls that nobody throttles.
const ATTEMPTS_MAX: u32 = 8;
const BACKOFF_FIRST: Duration = Duration::from_millis(300);
const BACKOFF_LAST: Duration = Duration::from_secs(5);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// One attempt; RunInstances itself takes a few seconds.
const ATTEMPT_MAX: Duration = Duration::from_secs(30);
/// All attempts of one call together.
const CALL_MAX: Duration = Duration::from_secs(90);

/// The clients, and what is known of the caller.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) ec2: aws_sdk_ec2::Client,
    pub(super) sts: aws_sdk_sts::Client,
    pub(super) region: String,
    /// When temporary credentials end, if their source says so, in words.
    pub(super) expiry: Option<String>,
}

impl Client {
    /// Errors, with what to do, when there are no usable credentials.
    pub(super) async fn connect(region: Option<&str>) -> Result<Self, Error> {
        let config = configure(region).await;
        let credentials = config.credentials_provider().ok_or_else(no_credentials)?;
        let credentials = credentials.provide_credentials().await.map_err(|cause| unusable(&cause))?;
        let expiry = credentials.expiry().and_then(|at| at.elapsed().err()).map(|left| {
            format!("the credentials end in {}", Span(Duration::from_secs(left.duration().as_secs())))
        });
        let region = config.region().map_or_else(|| REGION_DEFAULT.to_owned(), ToString::to_string);
        Ok(Self {
            ec2: aws_sdk_ec2::Client::new(&config),
            sts: aws_sdk_sts::Client::new(&config),
            region,
            expiry,
        })
    }
}

async fn configure(region: Option<&str>) -> SdkConfig {
    let http =
        aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let retries = RetryConfig::standard()
        .with_max_attempts(ATTEMPTS_MAX)
        .with_initial_backoff(BACKOFF_FIRST)
        .with_max_backoff(BACKOFF_LAST);
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_MAX)
        .operation_attempt_timeout(ATTEMPT_MAX)
        .operation_timeout(CALL_MAX)
        .build();
    aws_config::defaults(BehaviorVersion::v2026_01_12())
        .http_client(http)
        .region(region_of(region).await)
        .retry_config(retries)
        .timeout_config(timeouts)
        .load()
        .await
}

/// The option, else the environment, else the profile, else the default; the metadata service is not asked.
async fn region_of(wished: Option<&str>) -> Option<Region> {
    RegionProviderChain::first_try(wished.map(|name| Region::new(name.to_owned())))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new())
        .or_else(Region::new(REGION_DEFAULT))
        .region()
        .await
}

fn no_credentials() -> Error {
    Error::provider("find AWS credentials: there are none").with_hint(HOW_TO_GET)
}

const HOW_TO_GET: &str = "Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or fill ~/.aws/credentials; \
                          in a Learner Lab copy them from \"AWS Details\" after Start Lab. `aws sso login` works too.";

fn unusable(cause: &CredentialsError) -> Error {
    match cause {
        CredentialsError::CredentialsNotLoaded(_) => no_credentials(),
        CredentialsError::InvalidConfiguration(_) => {
            Error::provider(format!("read the AWS configuration: {}", whole(cause)))
                .with_hint("Look at ~/.aws/config and ~/.aws/credentials, and at AWS_PROFILE.")
        }
        CredentialsError::ProviderTimedOut(_) => {
            Error::provider("get AWS credentials: their source did not answer in time").with_hint(HOW_TO_GET)
        }
        _ => Error::provider(format!("get AWS credentials: {}", whole(cause)))
            .with_hint(format!("If they come from SSO, log in again. {HOW_TO_GET}")),
    }
}

/// An error with its causes.
pub(super) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_lack_credentials_says_what_to_do() {
        for cause in [
            CredentialsError::not_loaded("nothing in the chain"),
            CredentialsError::invalid_configuration("profile `x` is not there"),
            CredentialsError::provider_timed_out(Duration::from_secs(5)),
            CredentialsError::provider_error("the SSO session has expired"),
        ] {
            let error = unusable(&cause);
            assert!(error.hint.is_some() && error.kind == crate::Kind::Provider, "{error:?}");
        }
    }
}
