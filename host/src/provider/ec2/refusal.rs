//! What AWS's refusals mean, and what to do about them. Judged by their code, never by their text.
//!
//! It knows the codes; which of them a step can overcome is the step's own matter.

use std::fmt;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
};

use super::client;
use crate::{Error, Kind};

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// What was to be done, in words: `launch large`.
    operation: String,
    /// EC2's code; `None` when there was no answer that carries one.
    pub(super) code: Option<String>,
    message: String,
    request: Option<String>,
    /// The call did not get as far as AWS because there are no credentials.
    lacks_credentials: bool,
    /// Somebody answered, with what is no answer of AWS's.
    is_foreign_answer: bool,
    /// The failure that kept the call from being made.
    before: Option<Error>,
}

/// Success of a DryRun call arrives as this error.
const DRY_RUN: &str = "DryRunOperation";

impl Refusal {
    pub(super) fn of<E>(operation: impl Into<String>, error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + RequestId + std::error::Error + Send + Sync + 'static,
    {
        let operation = operation.into();
        let code = error.code().map(str::to_owned);
        let request = error.request_id().map(str::to_owned);
        let message = match error.message() {
            Some(message) => message.to_owned(),
            None => client::whole(&error),
        };
        let lacks_credentials = has_cause::<CredentialsError>(&error);
        let is_answered = matches!(error, SdkError::ServiceError(_) | SdkError::ResponseError(_));
        let is_foreign_answer = is_answered && code.is_none();
        Self { operation, code, message, request, lacks_credentials, is_foreign_answer, before: None }
    }

    /// A call that could not be made at all.
    pub(super) fn before(operation: &str, error: Error) -> Self {
        let (operation, message) = (operation.to_owned(), error.message.clone());
        Self {
            operation,
            code: None,
            message,
            request: None,
            lacks_credentials: false,
            is_foreign_answer: false,
            before: Some(error),
        }
    }

    pub(super) fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// Whether a DryRun call says that it would have been allowed.
    pub(super) fn is_dry_run_success(&self) -> bool {
        self.is(DRY_RUN)
    }

    /// Whether the credentials do not allow it.
    pub(super) fn is_denied(&self) -> bool {
        ["UnauthorizedOperation", "AccessDenied", "AccessDeniedException"].iter().any(|code| self.is(code))
    }

    /// Whether AWS does not know the thing, or not yet.
    pub(super) fn is_not_found(&self) -> bool {
        self.code.as_deref().is_some_and(|code| code.ends_with(".NotFound"))
    }
}

/// Whether the error or one of its causes is an `T`.
fn has_cause<T: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<T>())
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message.trim_end_matches('.');
        match &self.code {
            Some(code) => write!(f, "{}: {message} ({code})", self.operation),
            None => write!(f, "{}: {message}", self.operation),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        if let Some(error) = refusal.before {
            return error;
        }
        let text = refusal.to_string();
        let (kind, hint) = judge(&refusal);
        let error = Self::new(kind, text).with_hint(hint);
        match refusal.request {
            Some(request) => error.with_detail(format!("AWS request {request}")),
            None => error,
        }
    }
}

const RENEW: &str = "Renew them (in a Learner Lab: Start Lab, then copy \"AWS Details\" again) and run the same command \
                     again: it goes on where it ended. Instances end at their time in any case. If the credentials are \
                     new, look at this machine's clock.";

const UNREACHABLE: &str = "AWS could not be reached; look at the network, AWS_ENDPOINT_URL and the region, then run \
                           again.";

/// The kind of a refusal, and what to do.
fn judge(refusal: &Refusal) -> (Kind, String) {
    let (kind, hint) = match refusal.code.as_deref() {
        Some(code) => (Kind::Provider, mend(code)),
        None if refusal.lacks_credentials => (Kind::Provider, RENEW),
        None if refusal.is_foreign_answer => {
            (Kind::Host, "What answered does not speak as AWS does: look at AWS_ENDPOINT_URL and at proxies.")
        }
        None => (Kind::Host, UNREACHABLE),
    };
    (kind, hint.to_owned())
}

/// What to do about an error of AWS's with this code.
fn mend(code: &str) -> &'static str {
    match code {
        "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "AuthFailure"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException" => RENEW,
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => {
            "The credentials do not allow this action; README lists the permissions that labhost needs."
        }
        "InstanceLimitExceeded" | "VcpuLimitExceeded" | "MaxSpotInstanceCountExceeded" => {
            "The account's quota is used up. `labhost status` shows this lab; leftovers of other labs are named at the \
             start of a run. Remove what is not needed, make the topology smaller, or ask AWS for a higher quota."
        }
        "InsufficientInstanceCapacity" | "InsufficientHostCapacity" => {
            "AWS has no room for this type in any zone of the region now: run again later, or choose another type or \
             region."
        }
        "Unsupported" | "UnsupportedOperation" => "Choose a type that the region's zones offer.",
        "RequestLimitExceeded" | "Throttling" => {
            "AWS throttles this account's calls: wait a minute and run again."
        }
        "InvalidAMIID.NotFound" | "InvalidAMIID.Unavailable" => {
            "The image has been withdrawn: remove its line in artifacts/run.json, then run again to take the newest."
        }
        "OptInRequired" | "PendingVerification" => {
            "The account is not ready for EC2 yet; AWS's console says why."
        }
        "Unavailable" | "InternalError" | "ServiceUnavailable" => {
            "AWS itself has a problem: run again in a minute."
        }
        code if code.ends_with(".NotFound") => "It was removed meanwhile: run again to make it anew.",
        _ => "Run again: what was done is recorded and stays.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Refusal {
        pub(in super::super) fn with_code(code: Option<&str>) -> Self {
            Self {
                operation: "launch large".to_owned(),
                code: code.map(str::to_owned),
                message: "You have no more.".to_owned(),
                request: Some("r-1".to_owned()),
                lacks_credentials: false,
                is_foreign_answer: false,
                before: None,
            }
        }
    }

    #[test]
    fn codes_become_exit_4_with_what_to_do() {
        #[track_caller]
        fn check(code: &str, part: &str) {
            let error = Error::from(Refusal::with_code(Some(code)));
            assert_eq!(error.kind, Kind::Provider, "{code}");
            assert!(error.hint.as_ref().unwrap().contains(part), "{code}: {error:?}");
            assert_eq!(error.message, format!("launch large: You have no more ({code})"));
            assert_eq!(error.detail.as_deref(), Some("AWS request r-1"));
        }
        check("ExpiredToken", "Renew");
        check("RequestExpired", "clock");
        check("UnauthorizedOperation", "permissions");
        check("VcpuLimitExceeded", "quota");
        check("InsufficientInstanceCapacity", "another type");
        check("RequestLimitExceeded", "throttles");
        check("InvalidGroup.NotFound", "anew");
        check("SomethingNew", "Run again");
    }

    #[test]
    fn no_answer_is_a_failure_of_the_network() {
        assert_eq!(Error::from(Refusal::with_code(None)).kind, Kind::Host);
        let lacking = Refusal { lacks_credentials: true, ..Refusal::with_code(None) };
        assert_eq!(Error::from(lacking).kind, Kind::Provider);
        let foreign = Refusal { is_foreign_answer: true, ..Refusal::with_code(None) };
        assert!(Error::from(foreign).hint.unwrap().contains("AWS_ENDPOINT_URL"));
    }
}
