"""A NATS program that knows nothing of anywire: what `docs/wire.md` says is all that it goes by.

Arguments: the server's URL and the first token of all subjects. It prints a line of JSON for each thing it did.
"""

import asyncio
import json
import secrets
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


class Stream:
    """A streaming call, as its caller has it. We allow ten items at a time."""

    WINDOW = 10
    BYTES = 2**40

    def __init__(self, client):
        self.client = client
        self.number = secrets.token_hex(16)
        self.inbox = client.new_inbox()
        self.sent = self.read = self.may_send = 0
        self.sends = 0

    async def open(self, subject, request=b"", sends=0):
        """The opening is a call. It returns its reply, which accepts or refuses."""
        self.sends = sends
        self.frames = await self.client.subscribe(f"{self.inbox}.*")
        await self.client.flush()
        credit = f"{self.WINDOW} {self.BYTES}"
        left = heartbeat = PATIENCE * 1000
        opening = f"open {self.number} {sends} {credit} {left} {heartbeat} {self.inbox}"
        reply = await self.client.request(subject, request, timeout=PATIENCE, headers={"anywire-frame": opening})
        if "anywire-error" not in reply.headers:
            what, self.run, items, _, _, self.theirs = reply.headers["anywire-frame"].split()
            assert what == "accept", what
            self.may_send = int(items)
        return reply

    async def say(self, frame, payload=b""):
        await self.client.publish(f"{self.theirs}.s{self.number}{self.run}", payload, headers={"anywire-frame": frame})

    async def beat(self):
        """A sign of life: what we have sent, and what we allow."""
        await self.say(f"b {self.sent} {self.sends} {self.read + self.WINDOW} {self.BYTES} 1 {self.inbox}")

    async def end(self):
        await self.say(f"e {self.sent}")
        self.sends = 0

    async def hear(self):
        """The next frame."""
        frame = await self.frames.next_msg(timeout=PATIENCE)
        assert frame.subject == f"{self.inbox}.c{self.number}{self.run}", frame.subject
        what, *rest = frame.headers["anywire-frame"].split()
        if what == "b":
            sent, sends, items = int(rest[0]), rest[1], int(rest[2])
            assert sent <= self.read, "items were lost"
            assert sends == "1", "the end was lost"
            self.may_send = max(self.may_send, items)
            return what, None
        if what == "i":
            self.read += 1
            assert int(rest[0]) == self.read, "an item was lost"
            await self.beat()
            return what, json.loads(frame.data)
        if what == "e":
            assert int(rest[0]) == self.read, "the last items were lost"
        return what, frame

    async def rest(self):
        """All items up to the end, and the frame of the end."""
        items = []
        while True:
            what, told = await self.hear()
            if what == "i":
                items.append(told)
            elif what == "e":
                await self.frames.unsubscribe()
                return items, told

    async def send(self, item):
        while self.sent == self.may_send:
            await self.hear()
        self.sent += 1
        await self.say(f"i {self.sent}", json.dumps(item).encode())


async def makes_streaming_calls(client, token):
    """Many replies to one request, an error after some, a refusal; then many requests and one reply."""
    numbers = Stream(client)
    await numbers.open(f"{token}.count", b"1000")
    items, _ = await numbers.rest()
    tell("streamed", in_order=items == list(range(1, 1001)))

    fails = Stream(client)
    await fails.open(f"{token}.count", b"-5")
    items, end = await fails.rest()
    tell("failed", items=items, code=end.headers["anywire-error"], payload=json.loads(end.data))

    refused = await Stream(client).open(f"{token}.count", b'"many"')
    tell("turned away", code=refused.headers["anywire-error"])

    upload = Stream(client)
    await upload.open(f"{token}.sum", sends=1)
    for number in range(1, 1001):
        await upload.send(number)
    await upload.end()
    items, _ = await upload.rest()
    tell("uploaded", items=items)


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
    await makes_streaming_calls(client, token)
    await asyncio.wait_for(called.wait(), PATIENCE)
    await client.drain()


asyncio.run(main(*sys.argv[1:]))
