"""Settings: where values come from, and what a wrong one is called."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from service.config import Settings, as_toml, fields, flag, load, type_name
from service.errors import ConfigurationError

KUBERNETES = {  # what a Service named `fovea` injects into every pod of its namespace
    "FOVEA_PORT": "tcp://10.0.171.239:8000",
    "FOVEA_PORT_8000_TCP": "tcp://10.0.171.239:8000",
    "FOVEA_PORT_8000_TCP_ADDR": "10.0.171.239",
    "FOVEA_PORT_8000_TCP_PORT": "8000",
    "FOVEA_PORT_8000_TCP_PROTO": "tcp",
    "FOVEA_SERVICE_HOST": "10.0.171.239",
    "FOVEA_SERVICE_PORT": "8000",
    "FOVEA_SERVICE_PORT_HTTP": "8000",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


# Precedence


def test_without_any_source_the_defaults_hold() -> None:
    assert load() == Settings()


def test_flags_come_before_environment_before_file_before_default(file: Path) -> None:
    written(file, "[server]\nport = 1\nhost = 'file'\nbacklog = 7\n")
    environment = {"FOVEA_SERVER__PORT": "2", "FOVEA_SERVER__HOST": "environment"}
    server = load({("server", "port"): "3"}, environment, file).server
    assert (server.port, server.host, server.backlog) == (3, "environment", 7)
    assert server.keep_alive_s == Settings().server.keep_alive_s


def test_each_source_alone_is_enough(file: Path) -> None:
    assert load({("log", "level"): "debug"}).log.level == "debug"
    assert load(None, {"FOVEA_LOG__LEVEL": "debug"}).log.level == "debug"
    assert load(None, None, written(file, '[log]\nlevel = "debug"\n')).log.level == "debug"


@pytest.mark.parametrize(("section", "name"), [(section, name) for section, name, _ in fields()])
def test_every_setting_is_read_from_the_environment_under_its_name(section: str, name: str) -> None:
    odd = {
        "level": "error",
        "success_sample": "0.5",
        "root_path": "/7",
        "require_checksums": "true",
        "window_images": "700",
    }
    value = odd.get(name, "7")
    loaded = getattr(load(None, {f"FOVEA_{section}__{name}".upper(): value}), section)
    assert getattr(loaded, name) != getattr(getattr(Settings(), section), name)


def test_lists_are_split_at_commas_in_flags_and_environment(file: Path) -> None:
    assert load({("repository", "required"): "cats, dogs"}).repository.required == ("cats", "dogs")
    assert load(None, {"FOVEA_REPOSITORY__REQUIRED": "cats,dogs,"}).repository.required == ("cats", "dogs")
    assert load(None, {"FOVEA_REPOSITORY__REQUIRED": ""}).repository.required == ()
    assert load(None, None, written(file, '[repository]\nrequired = ["cats", "dogs"]\n')).repository.required == (
        "cats",
        "dogs",
    )


def test_the_poll_interval_is_the_same_by_flag_and_environment() -> None:
    assert flag("repository", "poll_interval_s") == "--repository.poll-interval-s"
    assert load({("repository", "poll_interval_s"): "0.5"}) == load(None, {"FOVEA_REPOSITORY__POLL_INTERVAL_S": "0.5"})


def test_what_kubernetes_injects_for_a_service_named_fovea_does_no_harm() -> None:
    assert load(None, KUBERNETES) == Settings()


@pytest.mark.parametrize("name", ["PATH", "FOVEA", "FOVEA__PORT", "fovea_server__port", "MY_FOVEA_SERVER__PORT"])
def test_other_variables_are_not_ours(name: str) -> None:
    assert load(None, {name: "nonsense"}) == Settings()


# What is wrong names itself


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FOVEA_SERVER__PORT", "http", "valid integer"),
        ("FOVEA_SERVER__PORT", "65536", "less than or equal to 65535"),
        ("FOVEA_REPOSITORY__POLL_INTERVAL_S", "-1", "greater than or equal to 0"),
        ("FOVEA_LIMITS__MAX_IMAGES", "0", "greater than or equal to 1"),
        ("FOVEA_LOG__LEVEL", "loud", "'debug'"),
        ("FOVEA_LOG__SUCCESS_SAMPLE", "1.5", "less than or equal to 1"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value_and_what_it_should_be(variable: str, value: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(None, {variable: value})
    assert f"environment {variable}: " in str(caught.value)
    assert said in str(caught.value)
    assert repr(value) in str(caught.value)


def test_a_wrong_flag_is_named_as_it_was_written() -> None:
    with pytest.raises(ConfigurationError, match=r"--repository\.poll-interval-s: .*\(got 'often'\)"):
        load({("repository", "poll_interval_s"): "often"})


def test_a_wrong_value_of_a_file_is_named_with_the_file(file: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(None, None, written(file, '[server]\nport = "http"\n'))
    assert str(file) in str(caught.value)
    assert "server.port" in str(caught.value)
    assert "'http'" in str(caught.value)


def test_the_source_that_gave_the_wrong_value_is_blamed(file: Path) -> None:
    written(file, "[server]\nport = 1\nbacklog = 2\n")
    with pytest.raises(ConfigurationError) as caught:
        load({("server", "port"): "x"}, {"FOVEA_SERVER__BACKLOG": "y", "FOVEA_SERVER__PORT": "3"}, file)
    message = str(caught.value)
    assert "--server.port: " in message
    assert "environment FOVEA_SERVER__BACKLOG: " in message
    assert "file" not in message


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FOVEA_SERVER__PROT": "1"}, "environment FOVEA_SERVER__PROT"),
        ({"FOVEA_SEVRER__PORT": "1"}, "environment FOVEA_SEVRER"),
    ],
)
def test_an_unknown_variable_is_named_with_a_way_to_see_the_known_ones(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(None, environment)
    assert f"{said}: there is no such setting; `fovea serve --print-settings` lists them all" in str(caught.value)


def test_an_unknown_key_or_section_of_a_file_is_named(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"settings\.toml: server\.prot: there is no such setting"):
        load(None, None, written(file, "[server]\nprot = 1\n"))
    with pytest.raises(ConfigurationError, match=r"settings\.toml: sevrer: there is no such setting"):
        load(None, None, written(file, "[sevrer]\nport = 1\n"))


def test_an_unknown_flag_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"--server\.prot: there is no such setting"):
        load({("server", "prot"): "1"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 1\n", "'port' is not a [section]"),
        ("[server\n", "at line 1"),
        ("[server]\nport = 1\nport = 2\n", "line"),
    ],
)
def test_a_file_that_is_no_settings_file_is_refused_by_name(file: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(None, None, written(file, text))
    assert f"settings file {file}: " in str(caught.value)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_refused_by_name(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"settings\.toml: No such file"):
        load(None, None, file)


def test_a_file_that_is_not_utf_8_is_refused_by_name(file: Path) -> None:
    file.write_bytes(b"[server]\nhost = '\xff'\n")
    with pytest.raises(ConfigurationError, match=r"settings\.toml"):
        load(None, None, file)


@pytest.mark.parametrize(
    "name", ["server.drain_delay_s", "server.grace_s", "server.keep_alive_s", "repository.poll_interval_s"]
)
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_seconds_are_finite(name: str, value: str) -> None:
    section, field = name.split(".")
    with pytest.raises(ConfigurationError, match=field.replace("_", "-")):
        load({(section, field): value})


def test_a_wrong_secret_is_not_shown(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"admin\.token") as caught:
        load(None, None, written(file, "[admin]\ntoken = 8675309\n"))
    assert "8675309" not in str(caught.value)


# The tree


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().server.port = 1  # type: ignore[misc]


def test_secrets_do_not_show_when_printed() -> None:
    loaded = load(None, {"FOVEA_ADMIN__TOKEN": "hunter2", "FOVEA_AUTH__TOKENS": "hunter3,hunter4"})
    assert loaded.admin.token is not None
    assert loaded.admin.token.get_secret_value() == "hunter2"
    assert [token.get_secret_value() for token in loaded.auth.tokens] == ["hunter3", "hunter4"]
    assert "hunter" not in repr(loaded) + str(loaded) + as_toml(loaded)


@pytest.mark.parametrize(
    ("section", "name", "said"),
    [
        ("server", "port", "int"),
        ("server", "host", "str"),
        ("server", "drain_delay_s", "float"),
        ("repository", "path", "path"),
        ("repository", "required", "list"),
        ("auth", "tokens", "list"),
        ("admin", "token", "secret"),
        ("log", "level", "debug | info | warning | error"),
    ],
)
def test_types_are_said_as_a_person_would(section: str, name: str, said: str) -> None:
    (field,) = [field for where, what, field in fields() if (where, what) == (section, name)]
    assert type_name(field.annotation) == said


# The prefix


@pytest.mark.parametrize(
    ("given", "kept"), [("", ""), ("/", ""), ("/vision", "/vision"), ("/vision/", "/vision"), ("/a.b/c-d", "/a.b/c-d")]
)
def test_a_prefix_is_kept_without_its_final_slash(given: str, kept: str) -> None:
    assert load({("server", "root_path"): given}).server.root_path == kept


@pytest.mark.parametrize("given", ["vision", "/two words", "//vision", "/vision?x=1", "https://host/vision"])
def test_what_is_no_prefix_is_refused(given: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--server\.root-path: .*must be a path such as /vision"):
        load({("server", "root_path"): given})


@pytest.mark.parametrize("given", ["/api", "/v2/", "/docs", "/static/vision"])
def test_a_prefix_that_could_be_one_of_our_own_paths_is_refused(given: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--server\.root-path: .*could not be told apart"):
        load({("server", "root_path"): given})


# Printing


def test_the_defaults_come_back_from_what_is_printed(file: Path) -> None:
    assert load(None, None, written(file, as_toml(Settings()))) == Settings()


def test_every_setting_is_printed_below_its_description() -> None:
    text = as_toml(Settings())
    for section, name, field in fields():
        table = text.split(f"[{section}]\n")[1]
        lines = table.splitlines()
        place = next(index for index, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{name} = "))
        assert lines[place - 1] == f"# {field.description}"


def test_a_setting_that_is_not_set_is_printed_as_a_comment() -> None:
    assert '# token = ""' in as_toml(Settings()).splitlines()
    assert tomllib.loads(as_toml(Settings()))["admin"] == {}


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=",\0"), max_size=12)


@given(
    changes=st.fixed_dictionaries(
        {
            "server": st.fixed_dictionaries(
                {"host": words, "port": st.integers(0, 65535), "drain_delay_s": st.floats(0, 1e9)}
            ),
            "repository": st.fixed_dictionaries({"path": words.map(Path), "required": st.lists(words).map(tuple)}),
            "log": st.fixed_dictionaries({"level": st.sampled_from(["debug", "error"])}),
        }
    )
)
@example(changes={"server": {"host": 'a"b\\c'}, "repository": {"path": Path("K\u00e4se 'n' \U0001f408")}})
@settings(max_examples=100, deadline=None)
def test_whatever_is_set_comes_back_from_what_is_printed(
    changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = Settings.model_validate(changes)
    file = tmp_path_factory.getbasetemp() / "printed-settings.toml"
    file.write_text(as_toml(before), encoding="utf-8", newline="")
    assert load(None, None, file) == before


def test_the_file_gives_secrets_too(file: Path) -> None:
    loaded = load(None, None, written(file, '[admin]\ntoken = "s3cret"\n[auth]\ntokens = ["a", "b"]\n'))
    assert loaded.admin.token == SecretStr("s3cret")
    assert loaded.auth.tokens == (SecretStr("a"), SecretStr("b"))
