//! What is written when the input is wrong: the message, and items that keep the rest of the program quiet about it.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::{Data, DeriveInput, Error, Item, ItemFn, ItemImpl};

use crate::ast::ours;

/// The item as it was.
pub(crate) fn item(item: &Item, error: &Error) -> TokenStream {
    let message = error.to_compile_error();
    quote!(#message #item)
}

/// The block as it was, with a controller that mounts nothing.
pub(crate) fn controller(block: &ItemImpl, error: &Error) -> TokenStream {
    let message = error.to_compile_error();
    if block.trait_.is_some() {
        return quote!(#message #block);
    }
    let (generics, _, bounds) = block.generics.split_for_impl();
    let ty = &block.self_ty;
    quote_spanned! {ours()=>
        #message
        #block
        impl #generics ::anywire::Controller for #ty #bounds {
            fn routes(self: ::std::sync::Arc<Self>) -> ::anywire::Router {
                ::anywire::Router::new()
            }
        }
    }
}

/// The function as it was, with a route that cannot be taken.
pub(crate) fn free_function(function: &ItemFn, error: &Error) -> TokenStream {
    let message = error.to_compile_error();
    if function.sig.receiver().is_some() {
        return quote!(#message #function);
    }
    let (visibility, name) = (&function.vis, &function.sig.ident);
    quote_spanned! {ours()=>
        #message
        #function
        #[doc(hidden)]
        #[allow(non_camel_case_types, dead_code)]
        #visibility struct #name {}
        impl ::anywire::__private::Annotated for #name {
            fn route() -> ::anywire::Route {
                ::std::unreachable!()
            }
        }
    }
}

/// An implementation of `HandlerError` that says nothing.
pub(crate) fn handler_error(input: &DeriveInput, error: &Error) -> TokenStream {
    let message = error.to_compile_error();
    if matches!(input.data, Data::Union(_)) {
        return message;
    }
    let name = &input.ident;
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    quote_spanned! {ours()=>
        #message
        #[automatically_derived]
        impl #generics ::anywire::HandlerError for #name #arguments #bounds {
            fn code(&self) -> ::std::borrow::Cow<'static, str> {
                ::std::unreachable!()
            }
            fn message(&self) -> ::std::string::String {
                ::std::unreachable!()
            }
        }
    }
}

/// An implementation of `FromParams` that finds nothing.
pub(crate) fn params(input: &DeriveInput, error: &Error) -> TokenStream {
    let message = error.to_compile_error();
    let name = &input.ident;
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    quote_spanned! {ours()=>
        #message
        #[automatically_derived]
        impl #generics ::anywire::FromParams for #name #arguments #bounds {
            const NAMES: &'static [&'static str] = &[];
            fn from_params(
                _: &::anywire::ParamMap<'_>,
            ) -> ::std::result::Result<Self, ::anywire::Failure> {
                ::std::unreachable!()
            }
        }
    }
}
