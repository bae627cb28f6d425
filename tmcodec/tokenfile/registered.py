"""Tokenizers that the format knows by number, so that a small file need not spend 34 bytes on a checksum.

A number stands for a name and the SHA-256 of weights for ever: rows may be added, never changed or removed.
"""

from __future__ import annotations

REGISTERED: dict[int, tuple[str, str]] = {
    1: ("mini-s2l2a-v2", "a6bf412a84c8254d30d2fc197e3cb91a52ae4d7764e4e0b85819e6d3358c658c"),
    2: ("mini-s2l1c-v2", "5534510e05b152470ad30fd3edd112cfc092037b40cbfa301f7d37af97822220"),
    3: ("mini-s2rgb-v1", "c4dd643a49db9671328fd520fdfaad3a3d8cd495d57788fe64a4282ccc36e7a5"),
    4: ("mini-s1grd-v2", "c6658438989db7151d9fc2672fb9552c3ead6d084a95cc8117b0ba018c92a28f"),
    5: ("mini-s1rtc-v2", "0e9704f81289f8b6a9e08d58e7a8f1d8bd43bc927e07332f56e5ce906dffe6aa"),
    6: ("mini-dem-v1", "894f5b4eea63e8ae7eda0ee6b02f8351bf09359c57a72229833b5e9f37827f02"),
    7: ("mini-ndvi-v2", "b2d340b457c6ec1e96c30303443da30f8a0517caaf1dc4185188b010c7d2114b"),
    8: ("mini-lulc-v2", "989abca8e61945e678916648841226707fe3e277ac51e4a696e41ecc66db3a87"),
    9: ("mini-dem-v2", "f3d610b0320b7462eaca4996abb4089f01757ac8520f1fb4626725733a386524"),
    10: ("mini-s2l1c-v3", "817e249ed8c48e58e7971b0311eab809c54f73f5f84fb3db38d1639a4eb72a1c"),
}
"""Number -> name and SHA-256 of the weights."""

_NUMBERS = {(name, bytes.fromhex(sha)): number for number, (name, sha) in REGISTERED.items()}


def registered_number(name: str, weights_sha256: bytes) -> int | None:
    """Return the number of a tokenizer, or None where it has none."""
    return _NUMBERS.get((name, weights_sha256))
