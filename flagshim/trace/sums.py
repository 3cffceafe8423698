"""Sums over the events of a trace, made by SQLite: who opened what, and what came of it.

Sorting a million events takes most of the time, so it is done once: into a table of the
connection's own, in a temporary file, which all sums are then read from.
"""

from flagshim.trace.records import Tally

_OUTCOME = """
    CASE decision
        WHEN 'cleared' THEN CASE
            WHEN errno IS NULL THEN 0
            WHEN errno IN ('EPERM', 'EACCES', 'EINVAL') THEN 1
            ELSE 2 END
        ELSE CASE
            WHEN reason LIKE 'not rescued: %' AND reason <> 'not rescued: it may make a new file'
                THEN 4
            WHEN errno IS NULL THEN 3
            WHEN errno IN ('EPERM', 'EACCES') THEN 4
            ELSE 5 END
    END"""
_COUNTS = {
    "opens": "count(*)",
    "cleared": "sum(outcome < 3)",
    "still_refused": "sum(outcome = 1)",
    "kept": "sum(outcome >= 3)",
    "failed": "sum(outcome IN (2, 4, 5))",
    "denied": "sum(outcome = 4)",
    "spoiled": "sum(outcome = 2)",
    "first_ns": "min(time_ns)",
    "last_ns": "max(time_ns)",
}
"""Columns of such sums, which `dropped` has too, and how they come from events."""

REFUSED = f"(({_OUTCOME}) IN (1, 4))"
"""Whether the kernel refused an event's call in the end."""


def _counted(where: str, name: str, rule: str) -> str:
    """Return a query for the sums over events, by session, program, rule and name of the file.

    LIMIT -1 keeps SQLite from flattening the inner query, and so from sorting the columns that
    `outcome` is made of instead of `outcome`, https://sqlite.org/optoverview.html#flattening.
    """
    counts = ", ".join(_COUNTS.values())
    return f"""
        SELECT session_id, program, rule, name, {counts}
        FROM (SELECT session_id, program, {rule} AS rule, {name} AS name, time_ns,
                     {_OUTCOME} AS outcome
              FROM event WHERE {where} LIMIT -1)
        GROUP BY name, program, rule, session_id"""


def create(table: str) -> tuple[str, str]:
    """Return what makes a table of sums; ?1 of the second: leave out what was before, or NULL."""
    columns = ", ".join(("session_id", "program", "rule", "name", *_COUNTS))
    events = _counted("?1 IS NULL OR time_ns >= ?1", "coalesce(resolved, path)", "rule")
    return (
        f"CREATE TEMP TABLE {table} ({columns})",
        f"""
        INSERT INTO {table} SELECT * FROM ({events})
        UNION ALL
        SELECT session_id, program, nullif(rule, ''), nullif(path, x''), {", ".join(_COUNTS)}
        FROM dropped WHERE ?1 IS NULL OR first_ns >= ?1""",
    )


TIMELINE = f"""
    SELECT bin, sum(outcome = 0), sum(outcome IN (1, 4)), sum(outcome IN (2, 5)), sum(outcome = 3)
    FROM (SELECT (time_ns - ?2) / ?3 AS bin, {_OUTCOME} AS outcome
          FROM event WHERE ?1 IS NULL OR time_ns >= ?1 LIMIT -1)
    GROUP BY bin"""
"""Events counted by time: ?1 since when, or NULL; ?2 when bin 0 begins; ?3 how long a bin is."""


def _total(column: str) -> str:
    how = {"first_ns": "min", "last_ns": "max"}.get(column, "sum")
    return f"{how}({column}) AS {column}"


TALLY = ", ".join(map(_total, Tally._fields))
"""Columns of a Tally, added up from rows of such a table."""

OPENED = ", ".join(("rule", "program", "name", *map(_total, (*Tally._fields, "denied", "spoiled"))))
"""Columns of an Opened, those of its Tally one by one."""


def _added(column: str) -> str:
    how = {"first_ns": "min", "last_ns": "max"}.get(column)
    old, new = column, f"excluded.{column}"
    return f"{column} = {how}({old}, {new})" if how else f"{column} = {old} + {new}"


DROP_EVENTS = (
    f"""
    INSERT INTO dropped (session_id, program, rule, path, {", ".join(_COUNTS)})
    {_counted("id < ?1", "coalesce(resolved, path, x'')", "coalesce(rule, '')")}
    ON CONFLICT DO UPDATE SET {", ".join(map(_added, _COUNTS))}""",
    "DELETE FROM event WHERE id < ?1",
)
"""Statements that turn the events below an id into counts."""
