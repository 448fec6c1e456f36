"""A Kafka program that knows nothing of anywire: what `docs/wire.md` says is all that it goes by.

Arguments: the server's address and the first token of all subjects. It prints a line of JSON for each thing it did.
"""

import json
import sys
import time

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic

PATIENCE = 20


def tell(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


def text(headers):
    return {name: value.decode() for name, value in headers}


class Program:
    def __init__(self, server, token):
        self.server, self.token = server, token
        self.producer = KafkaProducer(bootstrap_servers=server, acks="all")
        self.admin = KafkaAdminClient(bootstrap_servers=server)

    def create(self, topic):
        self.admin.create_topics([NewTopic(topic, 1, 1)])

    def send(self, topic, value, key=None, **headers):
        sent = self.producer.send(topic, value, key, [(name, text.encode()) for name, text in headers.items()])
        return sent.get(timeout=PATIENCE)

    def reads(self, topic, group=None):
        """From the first record on; without a group nothing is remembered."""
        consumer = KafkaConsumer(
            topic, bootstrap_servers=self.server, group_id=group, auto_offset_reset="earliest"
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for records in consumer.poll(timeout_ms=200).values():
                yield from records
        raise TimeoutError(f"nothing comes on {topic}")

    def serves(self):
        """The topic of a pattern's calls; whoever calls finds it by its name."""
        self.calls = f"anywire.calls.{self.token}.rate"
        self.create(self.calls)
        tell("serves")

    def answers_calls(self):
        """Two calls: one gets a rate, the other an error."""
        for number, request in enumerate(self.reads(self.calls, group=f"{self.token}-rates"), 1):
            asked, currency = text(request.headers), json.loads(request.value)
            payload, headers = b"1.25", {"kafka_correlationId": asked["kafka_correlationId"]}
            if currency != "EUR":
                headers["anywire-error"] = "unknown_currency"
                refusal = {"code": "unknown_currency", "message": f"no {currency} here", "details": {"asked": currency}}
                payload = json.dumps(refusal).encode()
            headers = [(name, value.encode()) for name, value in headers.items()]
            partition = int(asked["kafka_replyPartition"])
            self.producer.send(asked["kafka_replyTopic"], payload, headers=headers, partition=partition).get(PATIENCE)
            if number == 2:
                return

    def sends_orders(self):
        """Events: one that is an order, and one that is none, which becomes a dead letter."""
        topic = f"{self.token}.eu.placed"
        self.create(topic)
        self.send(topic, json.dumps({"id": "o-1", "count": 2}).encode(), b"c-17", tenant="blue")
        self.send(topic, b"three mugs")
        tell("sent")

    def reads_an_event(self):
        """What a handler emitted."""
        record = next(self.reads(f"{self.token}.charged"))
        tell(
            "read",
            subject=record.topic,
            payload=json.loads(record.value),
            has_id="anywire-id" in text(record.headers),
            key=record.key.decode(),
        )

    def reads_a_dead_letter(self):
        record = next(self.reads(f"anywire.dead.{self.token}"))
        headers = text(record.headers)
        past = {name: headers[f"anywire-{name}"] for name in ("subject", "group", "handler", "attempt")}
        tell("buried", payload=record.value.decode(), past=past)

    def calls_a_handler(self):
        """A request, answered; one that is refused."""
        mine = f"anywire.replies.{self.token}-python"
        self.create(mine)
        address = {"kafka_replyTopic": mine, "kafka_replyPartition": "0"}
        replies = self.reads(mine)
        for what, item in (("answered", b'"tea"'), ("refused", b'"unicorn"')):
            self.send(f"anywire.calls.{self.token}.quote", item, kafka_correlationId=what, **address)
            reply = next(replies)
            headers = text(reply.headers)
            asked = headers.pop("kafka_correlationId")
            tell(what, asked=asked, payload=json.loads(reply.value), headers=headers)


def main(url, token):
    program = Program(url.removeprefix("kafka://"), token)
    program.serves()
    program.sends_orders()
    program.reads_an_event()
    program.reads_a_dead_letter()
    program.calls_a_handler()
    program.answers_calls()


main(*sys.argv[1:])
