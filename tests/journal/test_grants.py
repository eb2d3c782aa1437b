"""The roles of a fleet on a real server: a host adds own rows, and nothing else is permitted."""

import re

import pytest
from sqlalchemy import inspect
from tests.support.commands import whoseblock as command
from tests.support.journals import PAGE, answer, file_row, opened, report
from tests.support.postgresql_server import Postgres

from whoseblock.errors import JournalError
from whoseblock.journal import Host, PlannedStep, State, open_journal
from whoseblock.journal.database import Database
from whoseblock.journal.grants import HOST_ROLE, READER_ROLE, grants
from whoseblock.journal.location import locate

NODE1, NODE2 = Host("node-1", "1" * 32), Host("node2.example", "2" * 32)


class Fleet:
    """A database with the roles of two hosts and a reader, and a plan of each host."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self.name = server.new_database().split("?")[0].rpartition("/")[2]
        script = "\n".join(grants())
        for _ in range(2):
            server.script(script, self.name)
        for role, group in (
            (NODE1.name, HOST_ROLE),
            (NODE2.name, HOST_ROLE),
            ("reader", READER_ROLE),
        ):
            # Roles belong to the whole server, which other tests use, too.
            server.psql(f'CREATE ROLE "{role}" LOGIN IN ROLE {group}', self.name, "postgres")
        for host in (NODE1, NODE2):
            with opened(self.url(host.name), host) as (_, run):
                failure = run.record_failure("sda", PAGE, report(key="k"), identity="x").failure
                run.record_finding(failure, answer(file_row("/a")))
                plan = run.plan([PlannedStep("zero", {}, failure)], [failure], {"applied": True})
                run.started(plan.steps[0].id)

    def url(self, role: str) -> str:
        return self._server.url(self.name, role)

    def attempt(self, statement: str, role: str = NODE2.name) -> str:
        """Run a statement as a role; return the server's error, or "" with what it did."""
        done = self._server.psql(statement, self.name, role)
        return done.stderr if done.returncode else f"done: {done.stdout}"

    def content(self) -> str:
        """Return all rows of all tables, to see that nothing was changed."""
        tables = [*TABLES.split(), "step_events", "journal_version"]
        return "".join(self._server.sql(f"TABLE {table}", self.name) for table in tables)


@pytest.fixture(name="fleet", scope="module")
def _fleet(postgres: Postgres) -> Fleet:
    return Fleet(postgres)


def test_a_host_does_all_that_it_needs(postgres: Postgres) -> None:
    fleet = Fleet(postgres)
    url = fleet.url(NODE1.name)
    with opened(url, NODE1) as (journal, run):
        (plan,) = journal.unfinished()
        (step,) = plan.steps
        run.failed(step.id, "EIO")
        run.started(step.id)
        run.done(step.id)
        run.verified(step.id, closes=(plan.failures[0], "done"))
        assert journal.history(plan.failures[0]).failure.closed is not None
        assert list(journal.doubtful()) == []
        again = run.record_failure("sda", PAGE, report(key="k2"), identity="x")
        assert again.new_failure
        run.close_failure(again.failure, "again")
    with open_journal(url, write=False, host=NODE1) as journal:
        assert journal.run_record(run.id).ended is not None
        assert journal.plan(plan.id).steps[0].state is State.VERIFIED
    with open_journal(fleet.url("reader"), write=False) as journal:
        assert [one.failure.host for one in journal.failures()] == [
            "node-1",
            "node2.example",
            "node-1",
        ]
    with pytest.raises(JournalError, match="does not permit this"), opened(fleet.url("reader")):
        pass


def test_the_same_tables_as_a_host_makes(fleet: Fleet, postgres: Postgres) -> None:
    made = postgres.new_database()
    open_journal(made).close()
    found = []
    for url in (made, postgres.url(fleet.name)):
        with Database(locate(url), write=False) as database, database.reading() as connection:
            tables = inspect(connection)
            found.append(
                [
                    (
                        name,
                        [
                            (column["name"], str(column["type"]))
                            for column in tables.get_columns(name)
                        ],
                        sorted(str(one["name"]) for one in tables.get_indexes(name)),
                        sorted(str(one["name"]) for one in tables.get_foreign_keys(name)),
                    )
                    for name in sorted(tables.get_table_names())
                ]
            )
    assert found[0] == found[1]


STATEMENTS = """\
-- Rows in the name of another host, whose rows were made first, or added to its rows.
INSERT INTO hosts (name, machine_id) VALUES ('node-1', 'x');
INSERT INTO hosts (name, machine_id) VALUES ('node3', 'x');
INSERT INTO runs (host, uid, user_name, sudo_user, pid, process, command, version, started)
    VALUES (1, 0, 'root', '', 1, 'x', '[]', '1', now());
INSERT INTO failures (host, device, identity, start, length, target, first_seen, run)
    VALUES (1, 'sdb', '', 0, 512, '', now(), 2);
INSERT INTO failures (host, device, identity, start, length, target, first_seen, run)
    VALUES (2, 'sdb', '', 0, 512, '', now(), 1);
INSERT INTO reports (failure, run, at, source, origin, detail) VALUES (1, 2, now(), 'x', '', '{}');
INSERT INTO reports (failure, run, at, source, origin, detail) VALUES (2, 1, now(), 'x', '', '{}');
INSERT INTO findings (failure, run, at, complete, notes, answer)
    VALUES (1, 2, now(), true, '[]', '{}');
INSERT INTO findings (failure, run, at, complete, notes, answer)
    VALUES (2, 1, now(), true, '[]', '{}');
INSERT INTO owners (finding, number, kind, start, length) VALUES (1, 9, 'free', 0, 1);
INSERT INTO owner_paths (finding, owner, mounted, number, digest, path)
    VALUES (1, 0, false, 9, 1, 'x');
INSERT INTO plans (run, at, options) VALUES (1, now(), '{}');
INSERT INTO plan_failures (plan, failure) VALUES (1, 2);
INSERT INTO plan_failures (plan, failure) VALUES (2, 1);
INSERT INTO steps (plan, number, kind, parameters) VALUES (1, 9, 'exec', '{}');
INSERT INTO steps (plan, number, kind, failure, parameters) VALUES (2, 9, 'exec', 1, '{}');
INSERT INTO step_events (step, number, state, run, at, detail)
    VALUES (1, 2, 'verified', 2, now(), '{}');
INSERT INTO step_events (step, number, state, run, at, detail)
    VALUES (2, 2, 'verified', 1, now(), '{}');
INSERT INTO journal_version VALUES (5);
COPY plans (run, at, options) FROM STDIN;
-- As the group, the role is no host.
SET ROLE whoseblock_host; INSERT INTO plans (run, at, options) VALUES (2, now(), '{}');
-- A number that the next row of another host would get.
INSERT INTO plans (id, run, at, options) VALUES (3, 2, now(), '{}');
SELECT setval('plans_id_seq', 1);
-- Changes of rows, own ones too.
UPDATE journal_version SET version_num = version_num;
UPDATE hosts SET name = name;
UPDATE runs SET host = host;
UPDATE runs SET uid = uid;
UPDATE runs SET process = process;
UPDATE failures SET device = device;
UPDATE failures SET host = host;
UPDATE reports SET source = source;
UPDATE findings SET answer = answer;
UPDATE findings SET mac = mac;
UPDATE owners SET kind = kind;
UPDATE owner_paths SET path = path;
UPDATE plans SET options = options;
UPDATE plan_failures SET failure = failure;
UPDATE steps SET parameters = parameters;
UPDATE step_events SET state = state;
UPDATE step_events SET mac = mac;
UPDATE failures SET closed = NULL WHERE host = 2;
UPDATE failures SET closed = now(), closed_by = 1 WHERE host = 2;
-- The rights themselves.
ALTER TABLE plans DISABLE ROW LEVEL SECURITY;
ALTER TABLE plans OWNER TO CURRENT_USER;
ALTER TABLE plans ADD COLUMN x INT;
DROP POLICY whoseblock_insert ON plans;
CREATE POLICY mine ON plans FOR INSERT WITH CHECK (true);
CREATE TRIGGER mine BEFORE INSERT ON plans EXECUTE FUNCTION suppress_redundant_updates_trigger();
CREATE RULE mine AS ON INSERT TO plans DO INSTEAD NOTHING;
CREATE INDEX mine ON plans (run);
CREATE FUNCTION public.max(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 1';
CREATE TABLE public.mine ();
CREATE SCHEMA mine;
GRANT whoseblock_host TO reader;
SET ROLE "node-1";
SET SESSION AUTHORIZATION "node-1";
ALTER ROLE "node-1" RENAME TO node9;
CREATE ROLE mine;
COPY plans TO PROGRAM 'id';
"""
TABLES = "hosts runs failures reports findings owners owner_paths plans plan_failures steps"
FORBIDDEN = [
    *(one for one in STATEMENTS.split(";\n") if one),
    *(
        f"{verb} {table}"
        for table in [*TABLES.split(), "step_events", "journal_version"]
        for verb in ("DELETE FROM", "TRUNCATE", "BEGIN; LOCK TABLE", "DROP TABLE")
    ),
]


#: The server's words for a missing right; an error of another kind would prove nothing.
REFUSED = re.compile(
    "permission denied|row-level security|must be owner|must be superuser|admin option"
)


def test_a_host_cannot_do_anything_else(fleet: Fleet) -> None:
    before = fleet.content()
    answers = {one: fleet.attempt(one) for one in FORBIDDEN}
    assert {one: said for one, said in answers.items() if not REFUSED.search(said)} == {}
    assert fleet.content() == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE runs SET ended = now() WHERE id = 1",
        "UPDATE failures SET closed = now(), closed_by = 2 WHERE id = 1",
        "UPDATE runs SET ended = now() + interval '1 day' WHERE id = 2",
    ],
)
def test_what_is_filled_in_already_or_of_others_is_not_changed(
    fleet: Fleet, statement: str
) -> None:
    before = fleet.content()
    assert fleet.attempt(statement) == "done: "
    assert fleet.content() == before


def test_a_reader_changes_nothing(fleet: Fleet) -> None:
    before = fleet.content()
    own = [
        "INSERT INTO hosts (name, machine_id) VALUES ('reader', 'x')",
        "UPDATE failures SET closed = now()",
        "SELECT nextval('plans_id_seq')",
    ]
    answers = {one: fleet.attempt(one, "reader") for one in [*FORBIDDEN, *own]}
    assert {one: said for one, said in answers.items() if not REFUSED.search(said)} == {}
    assert fleet.content() == before


def test_the_report_of_another_host_cannot_be_claimed(fleet: Fleet) -> None:
    # Both hosts reported an event with the same key of the same source: two rows.
    assert fleet.attempt("SELECT count(DISTINCT event) FROM reports") == "done: 2\n"


def test_the_command_prints_the_script() -> None:
    done = command("journal", "grants")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"{line}\n" for line in grants())
