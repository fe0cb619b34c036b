"""Random, mutated and hostile jobs through the worker: always a result or a coded error, within its limits.

A short form is in the tests; `make fuzz` runs the long one, tens of minutes:

    python -m tests.fuzz_jobs [JOBS [WHOLE_JOBS [SEED]]]

JOBS go through validation, fetching and decoding and stop before the model; WHOLE_JOBS go through the model too, which
is the tiny one: most of them right, some to hostile stores, some from forged state, some held by two workers at once.
What each is held to, `tests/campaign.py` says. The same seed makes the same jobs.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from infinitetalk.errors import GenerationStopped
from infinitetalk.media.tts import SpeechSynthesiser
from infinitetalk.recipes import RECIPES
from infinitetalk.worker.engine import Engine
from infinitetalk.worker.settings import Settings
from tests.campaign import LOG_SECRET, SECRET, WHOLE_LIMIT_S, Campaign
from tests.fuzz_states import Forger, TwoHolders, forgeries, holdings
from tests.hostile import BAD_SOURCES, HOSTILE_VALUES, encoded, job_with, movie, nested, picture, sound
from tests.hostile_network import BUSY, NAMES, REBINDING, SITE, SLOW, Behaviour, behaviours
from tests.job_inputs import data_uri, picture_bytes, small_job, speech_bytes

LONG_JOBS, LONG_WHOLE_JOBS = 20_000, 200
JOBS_OF_A_PART = 500
"""Of the long form: it tells how far it is."""

RUN_SETTINGS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}

LONGEST_TEXT = 90_000
LONGEST_INTEGER = 4_299
"""Digits that Python's JSON takes."""

JOB = small_job()
SPOKEN_JOB = small_job(cond_audio=None, tts_audio={"text": "Hello.", "human1_voice": "am_adam"})
PICTURE, VOICE = JOB["cond_video"], JOB["cond_audio"]["person1"]
TIMED_JOB = small_job(
    mode="streaming",
    prompt=[{"from_s": 0, "prompt": "A woman talks"}, {"from_s": 0.1, "prompt": "She laughs"}],
    cond_video=[{"from_s": 0, "media": PICTURE}, {"from_s": 0.2, "media": PICTURE}],
    cond_audio={"person1": VOICE, "person2": {"media": VOICE, "from_s": 0.2}},
)
SCRIPTED_JOB = small_job(
    cond_audio={"person1": VOICE, "person2": VOICE},
    audio_type="script",
    script=[{"speaker": "person1", "from_s": 0}, {"speaker": "person2", "from_s": 0.1, "to_s": 0.2}],
)
BATCH = {
    "batch": [{name: value for name, value in JOB.items() if name != "output_config"} | {"id": "a"}],
    "output_config": {"store": "volume"},
}
STORE = {"endpointUrl": "http://127.0.0.1:9", "accessId": "id", "accessSecret": "secret", "bucketName": "bucket"}


def film() -> str:
    """A short video with sound."""
    return data_uri(movie(), "video/mp4")


def dubbed_job() -> dict[str, Any]:
    """A job with all fields that have fields of their own."""
    return small_job(
        cond_video=film(),
        bbox={"person1": [8, 8, 56, 56]},
        dub={"strength": 0.5, "keep": "all", "feather": 4, "margin": 0.5},
        output={"fps": "source", "size": "source"},
        audio_mix={"source": -12},
        regions="halves",
        speech={"gate": "auto"},
        size={"width": 640, "height": 640},
        negative_prompt="blur",
        nag={"scale": 11, "tau": 2.5, "alpha": 0.25},
    )


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.text(st.characters(), max_size=40)
    # Copies, for a drawn value may be mutated further.
    | st.sampled_from(list(BAD_SOURCES.values())).map(copy.deepcopy)
    | st.sampled_from(["\ud800", "http://127.0.0.1/", "data:image/png;base64,", "examples/media/speech.wav", "a" * 200])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
"""Anything that JSON can carry, and some that it cannot."""


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all fields and items in a value of JSON."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in entries for place in ((*path, key), *places_in(inner, (*path, key)))]


@st.composite
def mutated(draw: Any, bases: st.SearchStrategy[dict[str, Any]], max_mutations: int = 3) -> dict[str, Any]:
    """A job's input with some of its fields replaced, removed, renamed or added."""
    job = copy.deepcopy(draw(bases))
    for _ in range(draw(st.integers(1, max_mutations))):
        if not (places := places_in(job)):
            break
        *parents, key = draw(st.sampled_from(places))
        parent = job
        for name in parents:
            parent = parent[name]
        match draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"])):
            case "replace":
                parent[key] = draw(values)
            case "remove":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text(max_size=20))] = parent.pop(key)
            case "add" if isinstance(parent, dict):
                parent[draw(st.sampled_from([*JOB, "tts_audio", "bbox", "mask", "loras", "person2"]))] = draw(values)
    return job


@st.composite
def damaged_media(draw: Any, originals: list[bytes]) -> str:
    """A file with bytes overwritten, cut out, doubled or cut off, as a data URI."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, max(len(content) - 1, 0)))
        # Headers are where it hurts.
        begin = begin % 64 if draw(st.booleans()) else begin
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(["overwrite", "cut out", "double", "cut off"])):
            case "overwrite":
                content[begin : begin + length] = draw(st.binary(min_size=1, max_size=length))
            case "cut out":
                del content[begin : begin + length]
            case "double":
                content[begin:begin] = content[begin : begin + length]
            case "cut off":
                del content[begin + length :]
    return data_uri(bytes(content), "application/octet-stream")


def pictures() -> list[bytes]:
    """Small pictures and videos to damage."""
    kinds = [picture(kind=kind, size=(32, 32)) for kind in ("JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    return [picture_bytes(32, 32), *kinds, movie(), encoded("-an -c:v libvpx-vp9 -deadline realtime", "webm")]


def voices() -> list[bytes]:
    """Short sounds to damage."""
    return [speech_bytes(0.3), sound("FLAC"), sound("OGG", "VORBIS"), encoded("-vn -c:a libmp3lame", "mp3"), movie()]


def envelope(job_input: Any, **more: Any) -> dict[str, Any]:
    """A job as the queue hands it over."""
    return {"id": "fuzz", "input": job_input} | more


def any_jobs() -> st.SearchStrategy[dict[str, Any]]:
    """Jobs that are wrong in some way, most of them."""
    bases = st.sampled_from([JOB, JOB, TIMED_JOB, SCRIPTED_JOB, dubbed_job(), SPOKEN_JOB, BATCH])
    with_media = st.builds(
        lambda source, voice: JOB | {"cond_video": source, "cond_audio": {"person1": voice}},
        damaged_media(pictures()),
        damaged_media(voices()),
    )

    # Names are looked up, which is slow where there is no name server.
    hostile_jobs = [job_with(hostile) for hostile in HOSTILE_VALUES if ".in" not in hostile.name]

    def further(job: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        return job | {"input": job["input"] | more} if isinstance(job["input"], dict) else job

    some_fields = st.dictionaries(st.sampled_from(list(JOB)), values, max_size=2)
    with_store = st.builds(
        lambda store: envelope(JOB | {"output_config": None}, s3Config=store), mutated(st.just(STORE))
    )
    kinds = {
        st.builds(further, st.sampled_from(hostile_jobs), some_fields): 4,
        st.builds(envelope, mutated(bases)): 12,
        st.builds(envelope, values): 1,
        st.builds(lambda job_id: {"id": job_id, "input": JOB | {"frame_num": 4}}, values): 1,
        with_store: 1,
        st.builds(envelope, with_media): 1,
    }
    return st.one_of([kind for kind, weight in kinds.items() for _ in range(weight)])


def timed(field: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """A few entries in the order of their times."""
    times = st.lists(st.integers(1, 20), max_size=3, unique=True).map(lambda found: [0, *sorted(found)])
    return times.flatmap(
        lambda found: st.tuples(*(values for _ in found)).map(
            lambda given: [{"from_s": time / 10, field: value} for time, value in zip(found, given, strict=True)]
        )
    )


def whole_jobs() -> st.SearchStrategy[dict[str, Any]]:
    """Jobs that are right, most of them, and small."""
    speakers = st.integers(1, 3).flatmap(
        lambda count: st.fixed_dictionaries(
            {f"person{number}": damaged_media(voices()[:2]) for number in range(1, count + 1)}
        )
    )
    sides = st.integers(8, 40).map(lambda tokens: 16 * tokens)
    later = st.floats(0, 1).map(lambda from_s: {"person1": VOICE, "person2": {"media": VOICE, "from_s": from_s}})
    fields = {
        "cond_video": st.sampled_from([PICTURE, film()]) | damaged_media(pictures()) | timed("media", st.just(PICTURE)),
        "cond_audio": st.just(JOB["cond_audio"]) | speakers | later,
        "prompt": st.text(min_size=1, max_size=40) | timed("prompt", st.text(min_size=1, max_size=40)),
        "frame_num": st.sampled_from([5, 9]),
        "motion_frame": st.integers(1, 8),
        "crossfade_frame": st.integers(0, 9),
        "max_frame_num": st.integers(1, 18),
        "mode": st.sampled_from(["clip", "streaming"]),
        "size": st.just("infinitetalk-480") | st.fixed_dictionaries({"width": sides, "height": sides}),
        "sample_steps": st.integers(1, 2),
        "recipe": st.none() | st.sampled_from(list(RECIPES)),
        "sample_shift": st.none() | st.floats(0.01, 100),
        "sample_text_guide_scale": st.floats(0, 50),
        "sample_audio_guide_scale": st.floats(0, 50),
        "negative_prompt": st.none() | st.text(max_size=40),
        "nag": st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                "scale": st.floats(1, 50),
                "tau": st.floats(1, 20),
                "alpha": st.floats(0, 1, exclude_min=True),
            },
        ),
        "color_correction_strength": st.floats(0, 1),
        "use_teacache": st.booleans(),
        "teacache_thresh": st.floats(0, 10, exclude_min=True),
        "use_apg": st.booleans(),
        "apg_momentum": st.floats(-1, 1),
        "apg_norm_threshold": st.floats(0, 10_000, exclude_min=True),
        "base_seed": st.integers(-1, 2**53 - 1),
        "scene_seg": st.booleans(),
        "audio_type": st.sampled_from(["para", "add"]),
        "speech": st.sampled_from([None, {"gate": "off"}, {"gate": "auto"}]),
        "regions": st.sampled_from(["halves", "faces"]),
        "dub": st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                "strength": st.floats(0, 1, exclude_min=True),
                "keep": st.sampled_from(["none", "face", "all"]),
                "feather": st.none() | st.floats(0, 512),
                "margin": st.none() | st.floats(0, 4),
            },
        ),
        "output": st.none()
        | st.fixed_dictionaries(
            {}, optional={"fps": st.sampled_from(["model", "source"]), "size": st.sampled_from(["model", "source"])}
        ),
        "audio_mix": st.none() | st.fixed_dictionaries({"source": st.floats(-60, 12)}),
        "bbox": st.none() | st.just({"person1": [0, 0, 20, 20]}),
        "output_config": st.sampled_from([{"store": "volume"}, {"store": "inline"}]),
    }
    right = st.fixed_dictionaries({}, optional=fields).map(lambda changes: JOB | changes)
    items = st.lists(right, min_size=1, max_size=2).map(
        lambda jobs: {"batch": [job | {"id": f"item-{number}"} for number, job in enumerate(jobs)]}
    )
    return st.builds(
        envelope,
        st.one_of(
            *(right, right, right, items, mutated(right, 1), mutated(st.just(SPOKEN_JOB), 1)),
            mutated(st.sampled_from([TIMED_JOB, SCRIPTED_JOB, dubbed_job()]), 1),
        ),
    )


# Addresses

HOSTS = (
    *("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::]", "0", "0.0.0.0", "127.1", "2130706433"),
    *("0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.1.", "10.0.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254"),
    *("168.63.129.16", "192.0.0.192", "[fd00:ec2::254]", "[2002:7f00:1::]", "127。0。0。1", "ⓛocalhost", "①27.0.0.1"),
    *("[fe80::1%25lo]", "[v1.x]", "[", "]", "", ".", "a" * 300, "xn--", "%6cocalhost", "loc%00alhost"),
    *(name for name in NAMES if "." in name),
    *(SITE, SITE.upper(), f"{SITE}.", f"{SITE}:80", f"{SITE}:", f"{SITE}:0", f"{SITE}:99999", f"{SITE}:x", "9.9.9.9"),
    *(BUSY, REBINDING, REBINDING, REBINDING, "nowhere.test"),
)
BETWEEN = (
    *("\\@", "@", "\\", "#@", "?@", "%40", "%5c@", "/", "//", "\t", "\n", "\r\n", " ", "\0", ";", ",", "|", "&@", ":@"),
    *(
        ":80@",
        ":80\\@",
        "[1]@",
        "\\\\",
        "%00@",
        "%0d%0a",
        "\u2028",
        "\u3002",
        "\ufeff",
        "..",
        "@@",
        "/@",
        "/\\@",
        "^",
        "`",
    ),
)
SCHEMES = (
    *("http://",) * 12,
    *("https://", "https://", "HTTP://", "hTtP:", "http:/", "http:///", "http:\\\\", "http://\\"),
    *(" http://", "\nhttp://", "http:// ", "//", "ftp://", "file://", "gopher://", "data://", "ws://", "jar:http://"),
)
PATHS = (
    *(
        "",
        "/",
        "/x.png",
        "?x",
        "#x",
        "/[1]",
        "/%7e",
        "/~",
        "/../..",
        "/a b",
        "/ä",
        "/\\x",
        "/x?a=b#c",
        "/%",
        "/%zz",
        "?",
        "??",
    ),
    *("/latest/meta-data/", "/{}", "/|", "\\", ";x", "/x\n", "/\ud800", "/" + "x" * 9000, "/" + "../" * 2000),
)


PRIVATE_HOSTS = HOSTS[: HOSTS.index("[fe80::1%25lo]")]
PUBLIC_HOSTS = (SITE, f"{SITE}:80", "9.9.9.9")
SPLITS = ("\\@", "\\@", "\\", "@", "#@", "?@", "/@", ":80\\@", "\t@", "\\\\@")


@st.composite
def addresses(draw: Any, trap: str) -> str:
    """Addresses that two parsers may read differently, or that lead where no job may."""
    private, hosts = st.sampled_from([*PRIVATE_HOSTS, trap, trap]), st.sampled_from([*HOSTS, trap])
    public = st.sampled_from(PUBLIC_HOSTS)
    match draw(st.sampled_from(["two", "two", "any", "any", "rebinding"])):
        case "two":
            first, second = draw(st.tuples(private, public) | st.tuples(public, private))
            host = first + draw(st.sampled_from(SPLITS)) + second
        case "any":
            host = draw(hosts)
            for _ in range(draw(st.integers(0, 2))):
                host += draw(st.sampled_from(BETWEEN)) + draw(hosts)
        case _:
            host = REBINDING
    address = draw(st.sampled_from(SCHEMES)) + host + draw(st.sampled_from(PATHS))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        place = draw(st.integers(0, len(address)))
        letter = draw(st.sampled_from(BETWEEN) | st.characters())
        address = address[:place] + letter + address[place + draw(st.integers(0, 1)) :]
    return address


def with_address(place: str, address: str) -> dict[str, Any]:
    """A job with an address where it may have one."""
    put = {"store": "put", "video_url": f"http://{SITE}/", "thumbnail_url": f"http://{SITE}/"}
    match place:
        case "cond_video" | "tts_audio":
            return envelope(JOB | {place: address})
        case "cond_audio":
            return envelope(JOB | {"cond_audio": {"person1": JOB["cond_audio"]["person1"], "person2": address}})
        case "mask":
            return envelope(JOB | {"cond_audio": {"person1": address, "person2": None}, "mask": {"person1": address}})
        case "video_url" | "thumbnail_url":
            return envelope(JOB | {"output_config": put | {place: address}})
        case "endpointUrl":
            return envelope(JOB | {"output_config": None}, s3Config=STORE | {"endpointUrl": address})
        case "batch":
            return envelope(
                {"batch": [BATCH["batch"][0] | {"cond_video": address}], "output_config": {"store": "volume"}}
            )
        case _:
            return envelope(JOB, **{place: address})


PLACES = (
    *("cond_video", "cond_audio", "mask", "tts_audio", "video_url", "thumbnail_url", "endpointUrl", "batch", "webhook"),
    "webhookV2",
)


def playlist(address: str) -> str:
    """A text that names an address where a video should be."""
    return data_uri(f"#EXTM3U\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n".encode("utf-8", "replace"), "video/mp4")


def addressed_jobs(trap: str) -> st.SearchStrategy[dict[str, Any]]:
    """Jobs with hostile addresses in all the places for one."""
    jobs = st.builds(with_address, st.sampled_from(PLACES), addresses(trap))
    # What a child process is made to read is not seen by this process, but by the trap.
    schemes = st.sampled_from(["http://", "tcp://", "rtsp://", "crypto+http://", "concat:http://", "hls+http://"])
    named = st.builds(lambda scheme: with_address("cond_video", playlist(f"{scheme}{trap}/x.ts")), schemes)
    return st.one_of([jobs] * 9 + [named])


def served_jobs() -> st.SearchStrategy[dict[str, Any]]:
    """Jobs whose picture or speech comes from a hostile server."""
    hosts = behaviours().map(lambda behaviour: f"http://{behaviour.label}.{SITE}/x")
    rarely_slow = st.sampled_from([f"http://{SLOW}/x"] + [f"http://{SITE}/x"] * 30)
    return st.builds(with_address, st.sampled_from(["cond_video", "cond_audio", "mask", "batch"]), hosts | rarely_slow)


# Texts, envelopes and secrets


def long_texts() -> st.SearchStrategy[str]:
    """Texts that take a careless pattern a time that grows with the square of their lengths."""
    starts = st.sampled_from(
        ["", "A" * 64, "A" * 64, "data:image/png;base64,", "data:", "http://", "(s1) ", "a?", "://"]
    )
    units = st.sampled_from([" ", " ", " ", "\n", "A", "A ", "=", "a?", "a?", "?key"]) | st.sampled_from(
        ["?", "://a@", "://", "@", "\\", "%", "(s1) ", "(", "a:", "-", "\u0130", "."]
    )
    ends = st.sampled_from(["!", "!", "", "=", "\0", "@", " "])
    return st.builds(
        lambda start, unit, length, end: start + unit * (length // len(unit)) + end,
        starts,
        units,
        st.integers(LONGEST_TEXT // 2, LONGEST_TEXT),
        ends,
    )


def long_jobs() -> st.SearchStrategy[dict[str, Any]]:
    """Jobs with such a text in some field, or many of them in a list."""
    names = st.sampled_from([*JOB, "tts_audio", "mask", "loras", "bbox", "unknown"])
    lists = st.builds(lambda text, count: [text[:1000]] * count, long_texts(), st.integers(1, 1000))
    speakers = long_texts().map(lambda text: {"person1": text})
    speech = long_texts().map(lambda text: {"text": text, "human1_voice": "am_adam"})
    media = long_texts().map(lambda text: {"cond_video": text}) | speakers.map(lambda voices: {"cond_audio": voices})
    fields = st.dictionaries(names, long_texts() | lists | speakers | speech, min_size=1, max_size=2)
    stores = long_texts().map(lambda text: envelope(JOB, s3Config=STORE | {"endpointUrl": text, "bucketName": text}))
    return st.one_of(
        [st.builds(lambda changes: envelope(JOB | changes), either) for either in (media, media, fields)] + [stores]
    )


def odd_envelopes() -> st.SearchStrategy[dict[str, Any]]:
    """Jobs that are right or nearly, in envelopes that are not."""
    long_integers = st.integers(1, LONGEST_INTEGER).map(lambda digits: 10**digits) | st.just(-(10**LONGEST_INTEGER))
    deep = st.integers(1, 900).map(nested)
    times = (
        st.sampled_from(
            [None, 0, -1, 1, 5, 60, 600, 5000, 86_400_000, 0.5, 1e-9, 1e300, "600", "5000", "", True, [], {}]
        )
        | long_integers
        | st.floats()
    )
    policies = st.dictionaries(st.sampled_from(["executionTimeout", "ttl", "lowPriority", "x"]), times) | values | deep
    odd = values | long_integers | deep
    names = [
        "policy",
        "webhook",
        "webhookV2",
        "s3Config",
        "refresh_worker",
        "delayTime",
        "status",
        "output",
        "error",
        "x",
    ]
    more = st.dictionaries(st.sampled_from(names), odd, max_size=3)
    jobs = st.just(JOB) | st.dictionaries(st.sampled_from(list(JOB)), odd, max_size=2).map(lambda fields: JOB | fields)
    inputs = jobs | deep | long_integers | st.just({"input": JOB})
    return st.builds(lambda job, extra, policy: envelope(job, **extra | policy), inputs, more, policies.map(as_policy))


def as_policy(policy: Any) -> dict[str, Any]:
    """An envelope's policy."""
    return {"policy": policy}


SIGNED = (
    f"?X-Amz-Signature={SECRET}",
    f"?sv=2024&sig={SECRET}",
    f"?token={SECRET}",
    f"?X-Goog-Signature={SECRET}&x=y",
    f"?AWSAccessKeyId=x&Signature={SECRET}",
    f"?password={SECRET}",
    f"?access_token={SECRET}#x",
)


def plant(job: dict[str, Any], place: str, address: str) -> dict[str, Any]:
    """A job with secrets where its sender may have put them, by right or by mistake.

    Args:
        address: one that is a secret itself.
    """
    job_input = job.get("input")
    if not isinstance(job_input, dict):
        return job
    store = STORE | {"accessSecret": SECRET}
    output = job_input["output_config"] if isinstance(job_input.get("output_config"), dict) else {}
    match place:
        case "store":
            return job | {"s3Config": store}
        case "endpoint":
            return job | {"s3Config": store | {"endpointUrl": f"{SECRET}/+key"}}
        case "bucket":
            return job | {"s3Config": store | {"bucketName": f"{SECRET}/+key"}}
        case "unknown field of the store":
            return job | {"s3Config": store | {"sessionToken": SECRET, SECRET: "x"}}
        case "store as a text":
            return job | {"s3Config": f"{address} {SECRET}"}
        case "webhook":
            return job | {"webhook": address}
        case "media":
            return job | {"input": job_input | {"cond_video": address}}
        case "speech":
            return job | {"input": job_input | {"cond_audio": {"person1": address, SECRET: address}}}
        case "mask":
            return job | {"input": job_input | {"mask": {"person1": address}}}
        case "put":
            put = {"store": "put", "video_url": address, "thumbnail_url": address}
            return job | {"input": job_input | {"output_config": put}}
        case "output":
            return job | {"input": job_input | {"output_config": output | {"accessSecret": SECRET}}}
        case "prompt":
            return job | {"input": job_input | {"prompt": f"{LOG_SECRET} as in {address.replace(SECRET, LOG_SECRET)}"}}
        case "headers":
            return job | {"input": job_input | {"headers": {"Authorization": f"Bearer {SECRET}"}}}
        case "path":
            return job | {"input": job_input | {"cond_video": f"http://{SITE}/{LOG_SECRET}/x.png"}}
        case _:
            return job | {"input": job_input | {"s3Config": store, "apiKey": SECRET, "env": {"S3_SECRET_KEY": SECRET}}}


SECRET_PLACES = (
    *(
        "store",
        "endpoint",
        "bucket",
        "unknown field of the store",
        "store as a text",
        "webhook",
        "media",
        "speech",
        "mask",
    ),
    *("put", "output", "prompt", "headers", "path", "input"),
)


def signed_addresses() -> st.SearchStrategy[str]:
    """Addresses that hold a secret."""
    hosts = st.sampled_from([SITE, "nowhere.test", BUSY, "127.0.0.1", "away.test"]) | behaviours(1).map(
        lambda behaviour: f"{behaviour.label}.{SITE}"
    )
    signed = st.builds(lambda host, query: f"https://{host}/x.png{query}", hosts, st.sampled_from(SIGNED))
    plain = st.builds(lambda host, query: f"http://{host}/x.png{query}", hosts, st.sampled_from(SIGNED))
    named = st.builds(lambda host: f"http://user:{SECRET}@{host}/x.png", hosts)
    return plain | signed | named


def with_secrets(jobs: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Jobs in which a secret has been planted."""
    return st.builds(plant, jobs, st.sampled_from(SECRET_PLACES), signed_addresses())


def hostile_jobs(trap: str) -> st.SearchStrategy[dict[str, Any]]:
    """All that is to be stopped before the model, or taken to it."""
    kinds = {
        any_jobs(): 11,
        addressed_jobs(trap): 4,
        served_jobs(): 2,
        long_jobs(): 1,
        odd_envelopes(): 2,
        with_secrets(st.just(envelope(JOB)) | any_jobs()): 2,
    }
    return st.one_of([kind for kind, weight in kinds.items() for _ in range(weight)])


# Whole jobs


GOOD_STORE = f"http://store.{SITE}"


def put_jobs(trap: str) -> st.SearchStrategy[dict[str, Any]]:
    """Jobs that are right but for an address that takes the result."""
    fields = st.sampled_from([("video_url", "thumbnail_url"), ("thumbnail_url", "video_url")])
    return st.builds(
        lambda names, address: envelope(
            JOB | {"output_config": {"store": "put", names[0]: address, names[1]: f"{GOOD_STORE}/{names[1]}"}}
        ),
        fields,
        addresses(trap),
    )


def stored_jobs(trap: str) -> st.SearchStrategy[dict[str, Any]]:
    """Jobs that are right but for their stores, which are good, or bad in one request or in all."""
    bad = behaviours(2).map(lambda behaviour: f"http://store.{behaviour.label}.{SITE}")
    places = st.one_of(st.just(GOOD_STORE), bad, bad, bad)
    put = st.builds(
        lambda video, thumbnail: {
            "store": "put",
            "video_url": f"{video}/x.mp4?X-Amz-Signature={SECRET}",
            "thumbnail_url": f"{thumbnail}/x.jpg?X-Amz-Signature={SECRET}",
        },
        places,
        places,
    )
    stores = st.builds(
        lambda place: STORE | {"endpointUrl": place, "accessSecret": SECRET},
        st.one_of(places, places, places, addresses(trap)),
    )
    outputs = st.sampled_from([{"store": "s3"}, {"store": "s3", "preview": True}])
    named = st.builds(lambda store, output: envelope(JOB | {"output_config": output}, s3Config=store), stores, outputs)
    own = outputs.map(lambda output: envelope(JOB | {"output_config": output}))
    putting = put.map(lambda output: envelope(JOB | {"output_config": output}))
    return st.one_of(putting, named, named, own)


def for_all(jobs: st.SearchStrategy[Any], run: Callable[[Any], None], num_jobs: int, seed: int) -> None:
    """Runs so many jobs, always the same ones for a seed."""

    @hypothesis.seed(seed)
    @settings(max_examples=num_jobs, **RUN_SETTINGS)
    @given(jobs)
    def run_all(job: Any) -> None:
        run(job)

    run_all()


def fuzz_to_the_model(campaign: Campaign, num_jobs: int, seed: int) -> None:
    """Runs jobs up to the model."""
    with (
        mock.patch.object(Engine, "embed", side_effect=GenerationStopped),
        mock.patch.object(SpeechSynthesiser, "speak", side_effect=GenerationStopped),
    ):
        for_all(hostile_jobs(campaign.network.trap), campaign.run, num_jobs, seed)


def fuzz_whole(campaign: Campaign, num_jobs: int, seed: int) -> None:
    """Runs jobs most of which are right, to their ends."""
    for_all(whole_jobs(), lambda job: campaign.run(job, WHOLE_LIMIT_S), num_jobs, seed)


def fuzz_puts(campaign: Campaign, num_jobs: int, seed: int) -> None:
    """Runs jobs whose results go to hostile addresses, those to their ends that are not refused before."""
    for_all(put_jobs(campaign.network.trap), lambda job: campaign.run(job, WHOLE_LIMIT_S), num_jobs, seed)


def fuzz_stores(campaign: Campaign, num_jobs: int, seed: int) -> None:
    """Runs jobs that are right but for their stores, to their ends."""

    def run(job: dict[str, Any]) -> None:
        result = campaign.run(job, WHOLE_LIMIT_S)
        if result is not None and result["status"] == "success" and not is_stored(result, campaign):
            campaign.findings.note("the store does not have what the result tells of", str(result["video"]), job)

    for_all(stored_jobs(campaign.network.trap), run, num_jobs, seed)


def is_stored(result: dict[str, Any], campaign: Campaign) -> bool:
    """Whether the video of a success is where it is said to be; of a store that lies, nobody can tell."""
    place = result["video"]["url"].partition("://")[2].partition("?")[0]
    if Behaviour.from_host(place.partition("/")[0]) != Behaviour():
        return True
    return len(campaign.network.site.objects.get(place, b"")) == result["video"]["bytes"]


def fuzz_states(campaign: Campaign, num_jobs: int, seed: int) -> None:
    """Runs a job whose kept state somebody has forged: its result must be the one that it has without."""
    forger = Forger(campaign)
    for_all(forgeries(), forger.run, num_jobs, seed)


def fuzz_two_holders(campaign: Campaign, num_jobs: int, seed: int) -> None:
    """Runs jobs that two workers hold at once, on one volume: what either tells must be true when both have ended."""
    holders = TwoHolders(campaign)
    for_all(holdings(), holders.run, num_jobs, seed)


PARTS: tuple[tuple[Callable[[Campaign, int, int], None], int], ...] = (
    (fuzz_whole, 50),
    (fuzz_stores, 20),
    (fuzz_states, 20),
    (fuzz_two_holders, 10),
)
"""Of whole jobs, and their shares in per cent."""


def main(num_jobs: int = LONG_JOBS, num_whole_jobs: int = LONG_WHOLE_JOBS, seed: int = 0) -> int:
    """Runs the long form and prints counts, times and what was found; returns 1 if anything was."""
    seed = seed or time.time_ns() % 1_000_000
    print(f"seed {seed}", flush=True)
    engine = Engine(Settings(infinitetalk_model="tiny"))
    engine.start()
    is_clean = True
    parts = [(fuzz, num_whole_jobs * share // 100) for fuzz, share in PARTS]
    num_puts = num_jobs // 20
    for fuzz, count in [*parts, (fuzz_puts, num_puts), (fuzz_to_the_model, num_jobs - num_puts)]:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, Campaign(engine, Path(folder)) as campaign:
            begin = time.monotonic()
            for number, done in enumerate(range(0, count, JOBS_OF_A_PART)):
                fuzz(campaign, min(count - done, JOBS_OF_A_PART), seed + number)
                seconds = time.monotonic() - begin
                counts = {str(outcome): number for outcome, number in campaign.outcomes.most_common()}
                print(f"{fuzz.__name__}: {campaign.outcomes.total()} jobs in {seconds:.0f} s: {counts}", flush=True)
            print(campaign.findings, flush=True)
            is_clean = is_clean and not campaign.findings.counts
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
