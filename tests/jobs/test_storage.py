"""What S3's answers and its names mean, without a server; tests/e2e/test_s3.py has one."""

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    EndpointResolutionError,
    MetadataRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    SSOTokenLoadError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)

from jobs.common.storage import ObjectError, SystemicError, classify, split_uri


def answer(code: str, operation: str = "GetObject") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, operation)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answer("NoSuchKey"), ObjectError),
        (answer("AccessDenied"), ObjectError),
        (answer("NoSuchBucket"), ObjectError),  # a manifest's row may name it
        (answer("InvalidAccessKeyId"), SystemicError),
        (answer("ExpiredToken"), SystemicError),
        (answer("InvalidIdentityToken", "AssumeRoleWithWebIdentity"), SystemicError),
        (answer("AccessDenied", "AssumeRole"), SystemicError),
        (answer("ForbiddenException", "GetRoleCredentials"), SystemicError),
        (NoCredentialsError(), SystemicError),
        (SSOTokenLoadError(error_msg="expired"), SystemicError),
        (UnauthorizedSSOTokenError(), SystemicError),
        (TokenRetrievalError(provider="sso", error_msg="expired"), SystemicError),
        (MetadataRetrievalError(error_msg="no"), SystemicError),
        (ParamValidationError(report="Invalid length for parameter Key"), ObjectError),
        (EndpointResolutionError(msg="Unrecognized S3Express bucket name format."), ObjectError),
        (answer("NoSuchBucket", "CreateSession"), ObjectError),
        (EndpointConnectionError(endpoint_url="http://s3"), ObjectError),  # `ask` has tried again by then
    ],
)
def test_whose_fault_it_is(error: BotoCoreError | ClientError, kind: type) -> None:
    assert type(classify(error, "photos")) is kind


@pytest.mark.parametrize(
    "key",
    [
        "Screenshot 2026-11-28 at 9.41.00\u202fAM.png",
        "\u5199\u771f\u3000\u4e00.jpg",
        "no\u00a0break.jpg",
        "\U0001f469\u200d\U0001f680.jpg",
        "a%2Fb c.jpg",
    ],
)
def test_names_that_people_use_are_keys(key: str) -> None:
    assert split_uri(f"s3://photos/{key}") == ("photos", key)
