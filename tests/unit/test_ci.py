import pytest
from opentelemetry.semconv._incubating.attributes import cicd_attributes, vcs_attributes

from flagshim import ci

GITHUB = {
    "GITHUB_ACTIONS": "true",
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REPOSITORY": "me/vm",
    "GITHUB_RUN_ID": "4711",
    "GITHUB_JOB": "boot",
    "GITHUB_HEAD_REF": "",
    "GITHUB_REF_NAME": "main",
    "GITHUB_TOKEN": "secret",
}


def test_github() -> None:
    assert ci.labels(GITHUB) == {
        "cicd.pipeline.run.id": "4711",
        "cicd.pipeline.run.url.full": "https://github.com/me/vm/actions/runs/4711",
        "cicd.pipeline.task.name": "boot",
        "vcs.repository.url.full": "https://github.com/me/vm",
        "vcs.ref.head.name": "main",
    }
    assert ci.labels({**GITHUB, "GITHUB_HEAD_REF": "topic"})["vcs.ref.head.name"] == "topic"


def test_nothing_outside_of_ci() -> None:
    assert ci.labels({"HOME": "/root", "GIT_URL": "x", "CI_JOB_ID": "7"}) == {}


def test_no_password() -> None:
    environment = {"JENKINS_URL": "x", "GIT_URL": "https://me:secret@git.example/vm.git"}
    assert ci.labels(environment) == {"vcs.repository.url.full": "https://git.example/vm.git"}


def test_odd_values() -> None:
    labels = ci.labels({"GITLAB_CI": "true", "CI_JOB_NAME": "\udcff" + "x" * 5000})
    assert labels["cicd.pipeline.task.name"].startswith("\\udcffxxx")
    assert len(labels["cicd.pipeline.task.name"]) == 1009


@pytest.mark.parametrize("system", ci._SYSTEMS)
def test_names_are_those_of_opentelemetry(system: str) -> None:
    known = set(map(str, [*vars(cicd_attributes).values(), *vars(vcs_attributes).values()]))
    assert {name for name, _ in ci._SYSTEMS[system]} <= known
