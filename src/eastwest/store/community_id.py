"""Community ID version 1 of flows: the same text for both directions of a flow, in every tool that knows it.

https://github.com/corelight/community-id-spec: base64 of the SHA-1 of seed, addresses, protocol and ports,
the lower end first. Computed by the database: no row passes through Python.
"""

_PORTED = "(1, 6, 17, 58, 132)"
# Types that ask and that answer stand for ports; any other message goes one way and is not turned round.
_ICMP = ((8, 0), (9, 10), (13, 14), (15, 16), (17, 18))
_ICMPV6 = ((128, 129), (130, 131), (133, 134), (135, 136), (139, 140), (144, 145))
_MAPPED = "unhex('00000000000000000000ffff')"


def _answers(pairs: tuple[tuple[int, int], ...]) -> str:
    """The type that answers `icmp_type`, -1 where there is none."""
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    return f"transform(icmp_type, {one + other}, {other + one}, -1)"


def with_clause(table: str, seed: int) -> str:
    """Definitions for a WITH clause over rows of `table`; `community_id` is the result, '' where not IP."""
    two = "char(intDiv({0}, 256), {0} % 256)".format
    return f"""
        reinterpret({table}.src, 'FixedString(16)') AS src_raw,
        reinterpret({table}.dst, 'FixedString(16)') AS dst_raw,
        startsWith(src_raw, {_MAPPED}) AND startsWith(dst_raw, {_MAPPED}) AS is_v4,
        substring(src_raw, if(is_v4, 13, 1)) AS src_bytes,
        substring(dst_raw, if(is_v4, 13, 1)) AS dst_bytes,
        {table}.protocol IN (1, 58) AS is_icmp,
        toInt16(intDiv({table}.dst_port, 256)) AS icmp_type,
        if({table}.protocol = 1, {_answers(_ICMP)}, {_answers(_ICMPV6)}) AS answer,
        if(is_icmp, icmp_type, {table}.src_port) AS near,
        if(is_icmp, if(answer < 0, {table}.dst_port % 256, answer), {table}.dst_port) AS far,
        NOT (is_icmp AND answer < 0)
            AND (dst_bytes < src_bytes OR (dst_bytes = src_bytes AND far < near)) AS turned,
        concat(
            {two(seed)},
            if(turned, concat(dst_bytes, src_bytes), concat(src_bytes, dst_bytes)),
            char({table}.protocol, 0),
            multiIf({table}.protocol NOT IN {_PORTED}, '',
                    turned, concat({two("far")}, {two("near")}), concat({two("near")}, {two("far")}))
        ) AS hashed,
        if({table}.protocol > 255, '', concat('1:', base64Encode(SHA1(hashed)))) AS community_id
    """
