"""An AMQP program that knows nothing of anywire: what `docs/wire.md` says is all that it goes by.

Arguments: the server's URL and the first token of all subjects. It prints a line of JSON for each thing it did.
"""

import json
import sys
import time

import pika

PATIENCE = 20
EVENTS, CALLS = "anywire", "anywire~calls"


def tell(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


class Program:
    def __init__(self, url, token):
        self.token = token
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        # What is published is confirmed, and an error where no queue takes it.
        self.channel.confirm_delivery()
        self.replies = []
        self.answered = 0

    def publish(self, exchange, key, body, **properties):
        self.channel.basic_publish(exchange, key, body, pika.BasicProperties(**properties), mandatory=True)

    def wait_for(self, happened):
        end = time.monotonic() + PATIENCE
        while not happened():
            if time.monotonic() > end:
                raise TimeoutError
            self.connection.process_data_events(time_limit=0.1)

    def answers_calls(self):
        """Two calls: one gets a rate, the other an error."""

        def rate(channel, method, request, body):
            currency = json.loads(body)
            payload, headers = b"1.25", None
            if currency != "EUR":
                headers = {"anywire-error": "unknown_currency"}
                refusal = {"code": "unknown_currency", "message": f"no {currency} here", "details": {"asked": currency}}
                payload = json.dumps(refusal).encode()
            reply = pika.BasicProperties(correlation_id=request.correlation_id, headers=headers)
            channel.basic_publish("", request.reply_to, payload, reply)
            self.answered += 1

        queue = self.channel.queue_declare("", exclusive=True).method.queue
        self.channel.queue_bind(queue, CALLS, f"{self.token}.rate")
        self.channel.basic_consume(queue, rate, auto_ack=True)
        tell("serves")

    def sends_orders(self):
        """Events: one that is an order, and one that is none, which becomes a dead letter."""
        order = json.dumps({"id": "o-1", "count": 2}).encode()
        subject = f"{self.token}.eu.placed"
        self.publish(EVENTS, subject, order, delivery_mode=2, message_id="order-1", headers={"tenant": "blue"})
        self.publish(EVENTS, subject, b"three mugs", delivery_mode=2)
        tell("sent")

    def follows(self, key):
        """A queue of our own, for what is emitted from now on."""
        queue = self.channel.queue_declare("", exclusive=True).method.queue
        self.channel.queue_bind(queue, EVENTS, key)
        return queue

    def take(self, queue):
        taken = []

        def on_message(channel, method, properties, body):
            channel.basic_ack(method.delivery_tag)
            taken.append((method, properties, body))

        consumer = self.channel.basic_consume(queue, on_message)
        self.wait_for(lambda: taken)
        self.channel.basic_cancel(consumer)
        return taken[0]

    def reads_an_event(self, queue):
        """What a handler emitted."""
        method, properties, body = self.take(queue)
        tell(
            "read",
            subject=method.routing_key,
            payload=json.loads(body),
            has_id=bool(properties.message_id),
            key=(properties.headers or {}).get("anywire-key"),
        )

    def reads_a_dead_letter(self):
        _, properties, body = self.take(f"anywire.dead.{self.token}")
        past = {name: properties.headers[f"anywire-{name}"] for name in ("subject", "group", "handler", "attempt")}
        tell("buried", payload=body.decode(), past=past)

    def calls_a_handler(self):
        """A request, answered; one that is refused; one that nobody serves."""

        def on_reply(channel, method, properties, body):
            self.replies.append((properties, json.loads(body)))

        # The server's own address for replies: they come to this channel.
        address = "amq.rabbitmq.reply-to"
        self.channel.basic_consume(address, on_reply, auto_ack=True)

        def ask(what, item):
            self.publish(CALLS, f"{self.token}.quote", item, reply_to=address, correlation_id=what)
            self.wait_for(lambda: self.replies)
            properties, payload = self.replies.pop()
            return {"asked": properties.correlation_id, "payload": payload, "headers": properties.headers or {}}

        tell("answered", **ask("1", b'"tea"'))
        tell("refused", **ask("2", b'"unicorn"'))
        try:
            self.publish(CALLS, f"{self.token}.nobody", b"", reply_to=address)
        except pika.exceptions.UnroutableError:
            tell("nobody")


def main(url, token):
    program = Program(url, token)
    program.answers_calls()
    charged = program.follows(f"{token}.charged")
    program.sends_orders()
    program.reads_an_event(charged)
    program.reads_a_dead_letter()
    program.calls_a_handler()
    program.wait_for(lambda: program.answered == 2)
    program.connection.close()


main(*sys.argv[1:])
