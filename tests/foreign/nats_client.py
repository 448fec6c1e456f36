"""A NATS program that knows nothing of anywire: what `docs/wire.md` says is all that it goes by.

Arguments: the server's URL and the first token of all subjects. It prints a line of JSON for each thing it did.
"""

import asyncio
import json
import sys

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy

PATIENCE = 20


def tell(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


async def sends_an_order(client, token):
    """An event: published to the stream, which confirms it."""
    confirmed = await client.jetstream().publish(
        f"{token}.eu.placed",
        json.dumps({"id": "o-1", "count": 2}).encode(),
        headers={"Nats-Msg-Id": "order-1", "tenant": "blue"},
    )
    again = await client.jetstream().publish(
        f"{token}.eu.placed",
        json.dumps({"id": "o-1", "count": 2}).encode(),
        headers={"Nats-Msg-Id": "order-1", "tenant": "blue"},
    )
    tell("sent", stream=confirmed.stream, repeated=bool(again.duplicate))
    # And one that is no order, which becomes a dead letter.
    await client.jetstream().publish(f"{token}.eu.placed", b"three mugs")


async def first(client, subject, stream):
    pull = await client.jetstream().pull_subscribe(
        subject, stream=stream, config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
    )
    [message] = await pull.fetch(1, timeout=PATIENCE)
    await message.ack()
    return message


async def reads_an_event(client, token):
    """What a handler emitted, from the stream that stores it."""
    message = await first(client, f"{token}.charged", f"anywire-{token}")
    headers = message.headers or {}
    tell(
        "read",
        subject=message.subject,
        payload=json.loads(message.data),
        has_id="Nats-Msg-Id" in headers,
        key=headers.get("anywire-key"),
    )


async def reads_a_dead_letter(client, token):
    message = await first(client, f"anywire.dead.{token}", "anywire_dead")
    past = {name: message.headers[f"anywire-{name}"] for name in ("subject", "group", "handler", "attempt")}
    tell("buried", payload=message.data.decode(), past=past)


async def calls_a_handler(client, token):
    """A request, answered; one that is refused; one that nobody serves."""
    good = await client.request(f"{token}.quote", b'"tea"', timeout=PATIENCE)
    tell("answered", payload=json.loads(good.data), headers=good.headers or {})
    bad = await client.request(f"{token}.quote", b'"unicorn"', timeout=PATIENCE)
    tell("refused", payload=json.loads(bad.data), headers=bad.headers)
    try:
        await client.request(f"{token}.nobody", b"", timeout=PATIENCE)
    except nats.errors.NoRespondersError:
        tell("nobody")


async def answers_calls(client, token, called):
    """Two calls: one gets a rate, the other an error."""

    async def rate(request):
        currency = json.loads(request.data)
        if currency == "EUR":
            await request.respond(b"1.25")
        else:
            refusal = {"code": "unknown_currency", "message": f"no {currency} here", "details": {"asked": currency}}
            headers = {"anywire-error": refusal["code"]}
            await client.publish(request.reply, json.dumps(refusal).encode(), headers=headers)
            called.set()

    await client.subscribe(f"{token}.rate", queue="rates", cb=rate)
    await client.flush()
    tell("serves")


async def main(url, token):
    client = await nats.connect(url)
    called = asyncio.Event()
    await answers_calls(client, token, called)
    await sends_an_order(client, token)
    await reads_an_event(client, token)
    await reads_a_dead_letter(client, token)
    await calls_a_handler(client, token)
    await asyncio.wait_for(called.wait(), PATIENCE)
    await client.drain()


asyncio.run(main(*sys.argv[1:]))
