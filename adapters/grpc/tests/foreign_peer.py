"""A gRPC program that knows nothing of anywire: its own messages, and what `docs/wire.md` says, are all that it goes by.

It has no generated code: the messages are what this .proto would give.

    syntax = "proto3";
    package shop.v1;
    message Item { string name = 1; }
    message Quote { uint64 cents = 1; string tenant = 2; }

Arguments: the address of the service, and the address at which to serve. It prints a line of JSON for each thing it did.
"""

import json
import sys
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PATIENCE = 20


def messages():
    file = descriptor_pb2.FileDescriptorProto(name="shop.proto", package="shop.v1", syntax="proto3")
    kinds = {"string": 9, "uint64": 4, "int32": 5}
    for name, fields in {
        "Item": [("name", "string")],
        "Quote": [("cents", "uint64"), ("tenant", "string")],
        "Check": [("service", "string")],
        "Checked": [("status", "int32")],
    }.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, 1):
            message.field.add(name=field, number=number, type=kinds[kind], label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    of = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.v1.{name}"))
    return of("Item"), of("Quote"), of("Check"), of("Checked")


Item, Quote, Check, Checked = messages()


def tell(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


def method(channel, path, request, reply):
    return channel.unary_unary(
        path, request_serializer=request.SerializeToString, response_deserializer=reply.FromString
    )


def calls(address):
    with grpc.insecure_channel(address) as channel:
        health = method(channel, "/grpc.health.v1.Health/Check", Check, Checked)
        tell("healthy", status=health(Check(), timeout=PATIENCE, wait_for_ready=True).status)
        quote = method(channel, "/shop.v1.Prices/Quote", Item, Quote)
        reply, call = quote.with_call(Item(name="tea"), timeout=PATIENCE, metadata=[("tenant", "blue"), ("raw-bin", b"\x00\xff")])
        tell("answered", cents=reply.cents, tenant=reply.tenant, code=call.code().name)
        for name in ["unicorn", ""]:
            try:
                quote(Item(name=name), timeout=PATIENCE)
            except grpc.RpcError as error:
                details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
                tell("refused", code=error.code().name, message=error.details(), details=b"unknown_item" in details)
        lost = method(channel, "/shop.v1.Prices/Lost", Item, Quote)
        try:
            lost(Item(name="tea"), timeout=PATIENCE)
        except grpc.RpcError as error:
            tell("nobody", code=error.code().name)
        slow = method(channel, "/shop.v1.Prices/Slow", Item, Quote)
        try:
            slow(Item(name="tea"), timeout=0.3)
        except grpc.RpcError as error:
            tell("late", code=error.code().name)
        # An event answers with an empty message when its handler has settled.
        placed = method(channel, "/shop.v1.Orders/Placed", Item, Item)
        tell("placed", name=placed(Item(name="tea"), timeout=PATIENCE).name)
        try:
            placed(Item(name="unicorn"), timeout=PATIENCE)
        except grpc.RpcError as error:
            tell("failed", code=error.code().name, message=error.details())


def streams(address):
    with grpc.insecure_channel(address) as channel:
        serde = {"request_serializer": Item.SerializeToString, "response_deserializer": Quote.FromString}
        follow = channel.unary_stream("/shop.v1.Prices/Follow", **serde)
        tell("followed", cents=[quote.cents for quote in follow(Item(name="tea"), timeout=PATIENCE)])
        for name in ["unicorn", "lost"]:
            read = []
            try:
                read.extend(quote.cents for quote in follow(Item(name=name), timeout=PATIENCE))
            except grpc.RpcError as error:
                tell("ended", read=read, code=error.code().name, message=error.details())
        call = follow(Item(name="endless"), timeout=PATIENCE)
        first = next(call).cents
        call.cancel()
        tell("left", first=first)
        collect = channel.stream_unary("/shop.v1.Prices/Sum", **serde)
        items = (Item(name=name) for name in ["tea", "milk", "tea"])
        tell("summed", cents=collect(items, timeout=PATIENCE).cents)
        haggle = channel.stream_stream("/shop.v1.Prices/Haggle", **serde)
        items = (Item(name=name) for name in ["a", "bb", "ccc"])
        tell("haggled", cents=[quote.cents for quote in haggle(items, timeout=PATIENCE)])


class Rates(grpc.GenericRpcHandler):
    """A server of methods of all kinds."""

    def service(self, details):
        serde = {"request_deserializer": Item.FromString, "response_serializer": Quote.SerializeToString}
        kinds = {
            "/shop.v1.Rates/Rate": (grpc.unary_unary_rpc_method_handler, self.rate),
            "/shop.v1.Rates/Watch": (grpc.unary_stream_rpc_method_handler, self.watch),
            "/shop.v1.Rates/Count": (grpc.stream_unary_rpc_method_handler, self.count),
            "/shop.v1.Rates/Echo": (grpc.stream_stream_rpc_method_handler, self.echo),
        }
        if details.method not in kinds:
            return None
        kind, handler = kinds[details.method]
        return kind(handler, **serde)

    def watch(self, item, context):
        for cents in range(1, 4):
            yield Quote(cents=cents, tenant=item.name)
        if item.name == "XXX":
            context.abort(grpc.StatusCode.NOT_FOUND, "no more of it")

    def count(self, items, context):
        return Quote(cents=sum(len(item.name) for item in items))

    def echo(self, items, context):
        for item in items:
            yield Quote(cents=len(item.name), tenant=item.name)

    def rate(self, item, context):
        metadata = dict(context.invocation_metadata())
        if item.name == "EUR":
            has_time = context.time_remaining() is not None and context.time_remaining() < 11
            tell("called", tenant=metadata.get("tenant"), raw=list(metadata.get("raw-bin", b"")), has_time=has_time)
            return Quote(cents=125, tenant=metadata.get("tenant", ""))
        if item.name == "XXX":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")
        context.abort(grpc.StatusCode.NOT_FOUND, f"no {item.name} here")


def main(address, own):
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Rates()])
    server.add_insecure_port(own)
    server.start()
    tell("serves")
    calls(address)
    streams(address)
    tell("over")
    sys.stdin.read()
    server.stop(0)


main(*sys.argv[1:])
