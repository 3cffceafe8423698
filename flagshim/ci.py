"""Which CI job this is, as its environment says it, under OpenTelemetry's names.

Names: https://opentelemetry.io/docs/specs/semconv/registry/attributes/, cicd and vcs. Variables:
docs.github.com "Default environment variables" (Forgejo and Gitea have the same), docs.gitlab.com
"Predefined CI/CD variables", Jenkins' /env-vars.html.
"""

import re
from collections.abc import Mapping

_GITHUB_REPOSITORY = "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}"
_SYSTEMS = {
    "GITHUB_ACTIONS": (
        ("cicd.pipeline.name", "{GITHUB_WORKFLOW}"),
        ("cicd.pipeline.run.id", "{GITHUB_RUN_ID}"),
        ("cicd.pipeline.run.url.full", _GITHUB_REPOSITORY + "/actions/runs/{GITHUB_RUN_ID}"),
        ("cicd.pipeline.task.name", "{GITHUB_JOB}"),
        ("cicd.worker.name", "{RUNNER_NAME}"),
        ("vcs.repository.url.full", _GITHUB_REPOSITORY),
        ("vcs.ref.head.name", "{GITHUB_HEAD_REF}"),
        ("vcs.ref.head.name", "{GITHUB_REF_NAME}"),
        ("vcs.ref.head.revision", "{GITHUB_SHA}"),
    ),
    "GITLAB_CI": (
        ("cicd.pipeline.name", "{CI_PIPELINE_NAME}"),
        ("cicd.pipeline.run.id", "{CI_PIPELINE_ID}"),
        ("cicd.pipeline.run.url.full", "{CI_PIPELINE_URL}"),
        ("cicd.pipeline.task.name", "{CI_JOB_NAME}"),
        ("cicd.pipeline.task.run.id", "{CI_JOB_ID}"),
        ("cicd.pipeline.task.run.url.full", "{CI_JOB_URL}"),
        ("cicd.worker.name", "{CI_RUNNER_DESCRIPTION}"),
        # CI_REPOSITORY_URL would have the job's token in it.
        ("vcs.repository.url.full", "{CI_PROJECT_URL}"),
        ("vcs.ref.head.name", "{CI_COMMIT_REF_NAME}"),
        ("vcs.ref.head.revision", "{CI_COMMIT_SHA}"),
    ),
    "JENKINS_URL": (
        ("cicd.pipeline.name", "{JOB_NAME}"),
        ("cicd.pipeline.run.id", "{BUILD_NUMBER}"),
        ("cicd.pipeline.run.url.full", "{BUILD_URL}"),
        ("cicd.pipeline.task.name", "{STAGE_NAME}"),
        ("cicd.worker.name", "{NODE_NAME}"),
        ("vcs.repository.url.full", "{GIT_URL}"),
        ("vcs.ref.head.name", "{GIT_BRANCH}"),
        ("vcs.ref.head.revision", "{GIT_COMMIT}"),
    ),
}
_LONGEST = 1009
"""Characters of a value; whoever started the job chose some of them."""


def labels(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what is known of the CI job that `environment` belongs to; nothing outside of one.

    Passwords in a URL are left out.
    """
    found: dict[str, str] = {}
    for mark, attributes in _SYSTEMS.items():
        if not environment.get(mark):
            continue
        for name, template in attributes:
            if all(environment.get(variable) for variable in re.findall(r"{(\w+)}", template)):
                value = template.format_map(environment)
                if name.endswith("url.full"):
                    value = re.sub(r"//[^/@]*@", "//", value)
                value = value.encode(errors="backslashreplace").decode()
                found.setdefault(name, value[:_LONGEST])
        break
    return found
