"""The layout of a trace file, and how to tell one from any other SQLite file."""

APPLICATION_ID = 0x666C6773
"""`PRAGMA application_id` of a trace ("flgs"), https://sqlite.org/pragma.html."""

VERSION = 1
"""`PRAGMA user_version`. A reader refuses a higher one; a change of layout raises it."""

DDL = """
CREATE TABLE IF NOT EXISTS session (
    id          INTEGER PRIMARY KEY,
    started_ns  INTEGER NOT NULL,  -- nanoseconds since the epoch
    ended_ns    INTEGER,           -- NULL while it runs, or if its supervisor was killed
    flagshim    TEXT NOT NULL,     -- version that wrote it
    engine      TEXT NOT NULL,
    host        TEXT NOT NULL,
    kernel      TEXT NOT NULL,
    machine     TEXT NOT NULL,     -- architecture whose open flags the events carry
    uid         INTEGER NOT NULL,  -- the user CMD was started as
    cwd         NOT NULL,          -- TEXT or BLOB, as `program`
    command     TEXT NOT NULL,     -- JSON array
    rules       TEXT NOT NULL,     -- JSON array of the rules in force
    exit_status INTEGER,           -- of CMD; negative: minus the fatal signal
    seen        INTEGER NOT NULL DEFAULT 0,  -- calls looked at, whether stored or lost
    lost        INTEGER NOT NULL DEFAULT 0   -- of these, how many are not in `event`
);
CREATE TABLE IF NOT EXISTS event (
    id           INTEGER PRIMARY KEY,
    session_id   INTEGER NOT NULL REFERENCES session(id),
    time_ns      INTEGER NOT NULL,
    tid          INTEGER NOT NULL,
    pid          INTEGER NOT NULL,
    program      NOT NULL,         -- TEXT; BLOB where the bytes are not UTF-8
    syscall      TEXT NOT NULL,
    abi          TEXT NOT NULL,
    path,                          -- TEXT, BLOB or NULL, as `program`
    resolved,
    access       TEXT NOT NULL,
    flags_before INTEGER NOT NULL,
    flags_after  INTEGER NOT NULL,
    decision     TEXT NOT NULL,
    rule         TEXT,
    reason       TEXT NOT NULL,
    owner_uid    INTEGER,
    fsuid        INTEGER,
    fd           INTEGER,
    errno        TEXT,
    tries        INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS blind_spot (          -- what may have opened files unseen
    session_id   INTEGER NOT NULL REFERENCES session(id),
    kind         TEXT NOT NULL,
    program      NOT NULL,
    count        INTEGER NOT NULL,
    PRIMARY KEY (session_id, kind, program)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dropped (             -- what became of events that were not to be kept
    session_id    INTEGER NOT NULL REFERENCES session(id),
    program       NOT NULL,
    rule          TEXT NOT NULL,   -- empty for none
    path          NOT NULL,        -- `resolved`, else `path`; an empty BLOB for neither
    opens         INTEGER NOT NULL,
    cleared       INTEGER NOT NULL,
    still_refused INTEGER NOT NULL,
    kept          INTEGER NOT NULL,
    failed        INTEGER NOT NULL,
    denied        INTEGER NOT NULL,
    spoiled       INTEGER NOT NULL,
    first_ns      INTEGER NOT NULL,
    last_ns       INTEGER NOT NULL,
    PRIMARY KEY (session_id, program, rule, path)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trouble (             -- what flagshim has to complain of
    session_id   INTEGER NOT NULL REFERENCES session(id),
    time_ns      INTEGER NOT NULL,
    text         TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS label (               -- what else is known of a session
    session_id   INTEGER NOT NULL REFERENCES session(id),
    name         TEXT NOT NULL,    -- as OpenTelemetry's semantic conventions call it
    value        TEXT NOT NULL,
    PRIMARY KEY (session_id, name)
) WITHOUT ROWID;
"""

TABLES = {statement.split("(")[0].split()[-1]: statement for statement in DDL.split(";\n")[:-1]}
"""The statements, by the table they make."""
ADDED_LATER = frozenset({"dropped", "trouble", "label"})
"""Tables that a trace of this version may lack."""

INSERT_EVENT = f"INSERT INTO event VALUES (NULL, {', '.join('?' * 20)})"
