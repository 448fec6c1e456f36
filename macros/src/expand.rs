//! From our structs to what a careful person would have typed.

use std::time::Duration;

use proc_macro2::{Literal, TokenStream};
use quote::{ToTokens, TokenStreamExt, format_ident, quote, quote_spanned};
use syn::{ItemFn, ItemImpl, Path};

use crate::ast::{Handler, Setting, Value, ours};
use crate::attr::Kind;

/// The block, and a `Controller` that routes to its methods.
pub(crate) fn controller(block: &ItemImpl, handlers: &[Handler]) -> TokenStream {
    let (generics, _, bounds) = block.generics.split_for_impl();
    let ty = &block.self_ty;
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
    let route = route(handler, name.to_token_stream());
    quote_spanned! {ours()=>
        #function

        #(#cfgs)*
        #[doc(hidden)]
        #[allow(non_camel_case_types, missing_debug_implementations)]
        #visibility struct #name {}

        #(#cfgs)*
        impl ::anywire::__private::Annotated for #name {
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

fn method_route(handler: &Handler) -> TokenStream {
    let method = &handler.ident;
    let types = &handler.arguments;
    let names: Vec<_> = (0..types.len())
        .map(|at| match at {
            0 => format_ident!("payload", span = ours()),
            _ => format_ident!("extractor{at}", span = ours()),
        })
        .collect();
    if !handler.receiver {
        let closure = quote_spanned!(ours()=> |#(#names: #types),*| Self::#method(#(#names),*));
        return route(handler, closure);
    }
    let closure = quote_spanned! {ours()=>
        move |#(#names: #types),*| {
            let controller = ::std::sync::Arc::clone(&controller);
            async move { Self::#method(&controller, #(#names),*).await }
        }
    };
    let route = route(handler, closure);
    quote_spanned! {ours()=> {
        let controller = ::std::sync::Arc::clone(&self);
        #route
    }}
}

fn route(handler: &Handler, function: TokenStream) -> TokenStream {
    let constructor = match handler.kind {
        Kind::Event => format_ident!("event", span = ours()),
        Kind::Call => format_ident!("call", span = ours()),
    };
    let Handler {
        target, settings, ..
    } = handler;
    let named = settings.iter().any(|setting| setting.method == "name");
    let name = (!named).then(|| {
        let name = handler.default_name();
        quote_spanned!(ours()=> .name(#name))
    });
    let doc = handler.doc.iter();
    quote_spanned! {ours()=>
        ::anywire::Route::#constructor(#target, #function) #name #(.doc(#doc))* #(#settings)*
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
