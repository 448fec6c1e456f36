//! From our structs to what a careful person would have typed.

use std::time::Duration;

use proc_macro2::{Literal, TokenStream};
use quote::{ToTokens, TokenStreamExt, format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Ident, ItemFn, ItemImpl, Path, Type};

use crate::ast::{Handler, Setting, Value, ours};
use crate::attr::Kind;

/// The block, and a `Controller` that routes to its methods.
pub(crate) fn controller(block: &ItemImpl, handlers: &[Handler]) -> TokenStream {
    let (generics, _, bounds) = block.generics.split_for_impl();
    let ty = &block.self_ty;
    let bounds = if block.generics.params.is_empty() {
        // A bound cannot be conditional, and what a `cfg` leaves out may lack its types.
        let unconditional = handlers.iter().filter(|handler| handler.cfgs.is_empty());
        let bounds = self::bounds(unconditional);
        quote_spanned!(ours()=> where #bounds)
    } else {
        bounds.to_token_stream()
    };
    let block_cfgs = crate::ast::cfgs(&block.attrs);
    let cfgs = handlers.iter().map(|handler| &handler.cfgs);
    let routes = handlers.iter().map(method_route);
    quote_spanned! {ours()=>
        #block

        #(#block_cfgs)*
        impl #generics ::anywire::Controller for #ty #bounds {
            fn routes(self: ::std::sync::Arc<Self>) -> ::anywire::Router {
                let router = ::anywire::Router::new();
                #(
                    #(#cfgs)*
                    let router = router.route(#routes);
                )*
                router
            }
        }
    }
}

/// The function, and a type of the same name that knows its route; types and functions do not share a namespace.
pub(crate) fn free_function(function: &ItemFn, handler: &Handler) -> TokenStream {
    let (visibility, name) = (&function.vis, &function.sig.ident);
    let cfgs = &handler.cfgs;
    let bounds = bounds([handler]);
    let route = route(handler, &name.to_token_stream());
    quote_spanned! {ours()=>
        #function

        #(#cfgs)*
        #[doc(hidden)]
        #[allow(non_camel_case_types, missing_debug_implementations)]
        #visibility struct #name {}

        #(#cfgs)*
        impl ::anywire::__private::Annotated for #name
        where #bounds
        {
            fn route() -> ::anywire::Route {
                #route
            }
        }
    }
}

/// The router of some annotated functions.
pub(crate) fn handlers<'a>(paths: impl Iterator<Item = &'a Path>) -> TokenStream {
    quote_spanned! {ours()=>
        ::anywire::Router::new()
            #(.route(<#paths as ::anywire::__private::Annotated>::route()))*
    }
}

/// What the framework asks of a handler's types, as bounds of the implementation.
///
/// The body asks the same, but of a closure, and the compiler would say that the closure is no handler. A bound is
/// refused at the user's own type, and once: the body may then take it for granted.
fn bounds<'a>(handlers: impl IntoIterator<Item = &'a Handler>) -> TokenStream {
    let bounds = handlers.into_iter().flat_map(|handler| {
        let payload = handler.arguments.iter().take(1);
        let extractors = handler.arguments.iter().skip(1);
        let (payload_is, output) = match handler.kind {
            Kind::Event => ("FromPayload", Some("IntoOutcome")),
            Kind::Call => ("FromPayload", Some("IntoReply")),
            // What it may return depends on whether it is asynchronous.
            Kind::Stream => ("StreamArgument", None),
        };
        let payload = payload.map(move |ty| bound(ty, payload_is));
        let extractors = extractors.map(|ty| bound(ty, "FromDelivery"));
        // `Result<impl Serialize>` has no name to bound.
        let named = |ty: &&Type| !ty.to_token_stream().to_string().contains("impl ");
        let returned = handler.output.iter().filter(named);
        let output = returned.filter_map(move |ty| Some(bound(ty, output?)));
        payload.chain(extractors).chain(output)
    });
    quote!(#(#bounds,)*)
}

fn bound(ty: &Type, name: &str) -> TokenStream {
    let span = ty.span().resolved_at(ours());
    let name = Ident::new(name, span);
    quote_spanned!(span=> #ty: ::anywire::#name)
}

fn method_route(handler: &Handler) -> TokenStream {
    let span = handler.span();
    let method = &handler.ident;
    let types = &handler.arguments;
    let names: Vec<Ident> = (0..types.len())
        .map(|at| match at {
            0 => Ident::new("payload", span),
            _ => format_ident!("extractor{at}", span = span),
        })
        .collect();
    if !handler.receiver {
        let closure = quote_spanned!(span=> |#(#names: #types),*| Self::#method(#(#names),*));
        return route(handler, &closure);
    }
    let closure = match handler.kind {
        Kind::Event | Kind::Call => quote_spanned! {span=>
            move |#(#names: #types),*| {
                let controller = ::std::sync::Arc::clone(&controller);
                async move { Self::#method(&controller, #(#names),*).await }
            }
        },
        // The stream borrows from the controller, which the future keeps.
        Kind::Stream => quote_spanned! {span=>
            move |#(#names: #types,)* reply: ::anywire::StreamReply| {
                let controller = ::std::sync::Arc::clone(&controller);
                async move { reply.drive(Self::#method(&controller, #(#names),*)).await }
            }
        },
    };
    let route = route(handler, &closure);
    quote_spanned! {span=> {
        let controller = ::std::sync::Arc::clone(&self);
        #route
    }}
}

/// The route to a function or a closure. Its types are spelled out, so that a contract with others is refused at its
/// name.
fn route(handler: &Handler, function: &TokenStream) -> TokenStream {
    let span = handler.span();
    let constructor = match handler.kind {
        Kind::Event => Ident::new("event", span),
        Kind::Call => Ident::new("call", span),
        Kind::Stream => Ident::new("stream", span),
    };
    let Handler {
        target, settings, ..
    } = handler;
    let payload = handler.arguments.first();
    let extractors = handler.arguments.iter().skip(1);
    let named = settings.iter().any(|setting| setting.method == "name");
    let name = (!named).then(|| {
        let name = handler.default_name();
        quote_spanned!(span=> .name(#name))
    });
    let doc = handler.doc.iter();
    let driven = handler.kind == Kind::Stream && handler.receiver;
    let driven = driven.then(|| quote_spanned!(span=> ::anywire::StreamReply,));
    // How it answers is for the compiler to find.
    let answers = (handler.kind == Kind::Stream).then(|| quote!(_,));
    quote_spanned! {span=>
        ::anywire::Route::#constructor::<#payload, (#(#extractors,)* #driven), #answers _>(#target, #function)
            #name #(.doc(#doc))* #(#settings)*
    }
}

impl ToTokens for Setting {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let Self { method, value } = self;
        tokens.append_all(quote!(.#method(#value)));
    }
}

impl ToTokens for Value {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        tokens.append_all(match self {
            Self::Set => TokenStream::new(),
            Self::Written(value) => value.to_token_stream(),
            Self::Wait(wait) => duration(*wait),
            Self::Waits(waits) => {
                let waits = waits.iter().copied().map(duration);
                quote!([#(#waits),*])
            }
            Self::Variant(name, variant) => quote!(::anywire::#name::#variant),
        });
    }
}

fn duration(wait: Duration) -> TokenStream {
    match u64::try_from(wait.as_millis()) {
        Ok(millis) if Duration::from_millis(millis) == wait => {
            let millis = Literal::u64_unsuffixed(millis);
            quote_spanned!(ours()=> ::std::time::Duration::from_millis(#millis))
        }
        _ => {
            let seconds = Literal::u64_unsuffixed(wait.as_secs());
            let nanos = Literal::u32_unsuffixed(wait.subsec_nanos());
            quote_spanned!(ours()=> ::std::time::Duration::new(#seconds, #nanos))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use syn::parse_quote;

    use super::*;
    use crate::ast;

    /// Compares as text, so that a failure shows lines.
    #[track_caller]
    fn assert_expands(expansion: TokenStream, expected: TokenStream) {
        let text = |tokens| prettyplease::unparse(&syn::parse2(tokens).unwrap());
        let (expansion, expected) = (text(expansion), text(expected));
        assert_eq!(expansion, expected, "expanded to:\n{expansion}");
    }

    #[test]
    fn a_controller_expands_to_a_router() {
        let mut block: ItemImpl = parse_quote! {
            impl Shop {
                /// Quotes the price of an item.
                ///
                /// In euros.
                #[message_pattern("shop.quote", timeout = "2s")]
                #[inline]
                async fn quote(&self, item: Item) -> Result<Quote, ShopError> {
                    self.price(item)
                }
                #[cfg(feature = "eu")]
                #[anywire::event_pattern(PLACED, broadcast, order = "key-in-group", retry = ["1s", "5us"], name = "place")]
                async fn placed(mut order: Order, Param(region): Param<Region>, _: Client) {}
                fn price(&self) {}
            }
        };
        let handlers = ast::handlers(&mut block).unwrap();
        let expected = quote! {
            impl Shop {
                /// Quotes the price of an item.
                ///
                /// In euros.
                #[inline]
                async fn quote(&self, item: Item) -> Result<Quote, ShopError> {
                    self.price(item)
                }
                #[cfg(feature = "eu")]
                async fn placed(mut order: Order, Param(region): Param<Region>, _: Client) {}
                fn price(&self) {}
            }
            impl ::anywire::Controller for Shop
            where
                Item: ::anywire::FromPayload,
                Result<Quote, ShopError>: ::anywire::IntoReply,
            {
                fn routes(self: ::std::sync::Arc<Self>) -> ::anywire::Router {
                    let router = ::anywire::Router::new();
                    let router = router.route({
                        let controller = ::std::sync::Arc::clone(&self);
                        ::anywire::Route::call::<Item, (), _>(
                            "shop.quote",
                            move |payload: Item| {
                                let controller = ::std::sync::Arc::clone(&controller);
                                async move { Self::quote(&controller, payload).await }
                            },
                        )
                        .name("quote")
                        .doc("Quotes the price of an item.\n\nIn euros.")
                        .timeout(::std::time::Duration::from_millis(2000))
                    });
                    #[cfg(feature = "eu")]
                    let router = router.route(
                        ::anywire::Route::event::<Order, (Param<Region>, Client,), _>(
                            PLACED,
                            |payload: Order, extractor1: Param<Region>, extractor2: Client| Self::placed(payload, extractor1, extractor2),
                        )
                        .broadcast()
                        .order(::anywire::Order::KeyInGroup)
                        .retry([
                            ::std::time::Duration::from_millis(1000),
                            ::std::time::Duration::new(0, 5000),
                        ])
                        .name("place"),
                    );
                    router
                }
            }
        };
        assert_expands(controller(&block, &handlers), expected);
    }

    #[test]
    fn a_streaming_method_is_driven_by_a_future_that_keeps_its_controller() {
        let mut block: ItemImpl = parse_quote! {
            impl Shop {
                #[stream_pattern(FOLLOW)]
                fn follow(&self, order: u32) -> impl Stream<Item = Result<String>> {
                    self.steps(order)
                }
            }
        };
        let handlers = ast::handlers(&mut block).unwrap();
        let expected = quote! {
            impl Shop {
                fn follow(&self, order: u32) -> impl Stream<Item = Result<String>> {
                    self.steps(order)
                }
            }
            impl ::anywire::Controller for Shop
            where
                u32: ::anywire::StreamArgument,
            {
                fn routes(self: ::std::sync::Arc<Self>) -> ::anywire::Router {
                    let router = ::anywire::Router::new();
                    let router = router.route({
                        let controller = ::std::sync::Arc::clone(&self);
                        ::anywire::Route::stream::<u32, (::anywire::StreamReply,), _, _>(
                            FOLLOW,
                            move |payload: u32, reply: ::anywire::StreamReply| {
                                let controller = ::std::sync::Arc::clone(&controller);
                                async move { reply.drive(Self::follow(&controller, payload)).await }
                            },
                        )
                        .name("follow")
                    });
                    router
                }
            }
        };
        assert_expands(controller(&block, &handlers), expected);
    }

    #[test]
    fn a_generic_block_keeps_its_bounds() {
        let mut block: ItemImpl = parse_quote! {
            impl<T: Db> Shop<T> where T: Clone {
                #[event_pattern("a")]
                async fn a(&self, _: Ignore) {}
            }
        };
        let handlers = ast::handlers(&mut block).unwrap();
        let expansion = controller(&block, &handlers).to_string();
        let header = quote!(
            impl<T: Db> ::anywire::Controller for Shop<T> where T: Clone {}
        );
        let header = header.to_string();
        assert!(
            expansion.contains(header.trim_end_matches("{ }")),
            "{expansion}"
        );
    }

    #[test]
    fn a_function_stays_and_gets_a_type_of_its_name() {
        let mut function: ItemFn = parse_quote! {
            #[cfg(unix)]
            pub(crate) async fn welcome(user: User) -> Result<()> {
                Ok(())
            }
        };
        let arguments = quote!("user.created", group = "mail", delivery = "at_most_once");
        let handler = ast::free_function(Kind::Event, arguments, &mut function).unwrap();
        let expected = quote! {
            #[cfg(unix)]
            pub(crate) async fn welcome(user: User) -> Result<()> {
                Ok(())
            }
            #[cfg(unix)]
            #[doc(hidden)]
            #[allow(non_camel_case_types, missing_debug_implementations)]
            pub(crate) struct welcome {}
            #[cfg(unix)]
            impl ::anywire::__private::Annotated for welcome
            where
                User: ::anywire::FromPayload,
                Result<()>: ::anywire::IntoOutcome,
            {
                fn route() -> ::anywire::Route {
                    ::anywire::Route::event::<User, (), _>("user.created", welcome)
                        .name("welcome")
                        .group("mail")
                        .guarantee(::anywire::Guarantee::AtMostOnce)
                }
            }
        };
        assert_expands(free_function(&function, &handler), expected);
    }

    #[test]
    fn a_list_of_handlers_expands_to_a_router() {
        let paths: [Path; 2] = [parse_quote!(welcome), parse_quote!(users::created)];
        let expected = quote! {
            fn f() {
                ::anywire::Router::new()
                    .route(<welcome as ::anywire::__private::Annotated>::route())
                    .route(<users::created as ::anywire::__private::Annotated>::route())
            }
        };
        let router = handlers(paths.iter());
        assert_expands(quote!(fn f() { #router }), expected);
    }
}
