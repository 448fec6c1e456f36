//! `#[derive(Params)]`: named captures into the fields of a struct.

use proc_macro2::TokenStream;
use quote::quote_spanned;
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Field, Fields, Ident, Result};

use crate::ast::ours;

pub(crate) fn derive(input: &DeriveInput) -> Result<TokenStream> {
    let fields = named(input)?;
    let name = &input.ident;
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    let captures: Vec<String> = fields
        .iter()
        .map(|(field, _)| field.unraw().to_string())
        .collect();
    // At the field's own type: that is where the compiler says what it lacks.
    let values = fields
        .iter()
        .zip(&captures)
        .map(|((ident, field), capture)| {
            let ty = &field.ty;
            let span = ty.span().resolved_at(ours());
            let value = quote_spanned!(span=> params.get::<#ty>(#capture)?);
            quote_spanned!(ours()=> #ident: #value)
        });
    Ok(quote_spanned! {ours()=>
        #[automatically_derived]
        impl #generics ::anywire::FromParams for #name #arguments #bounds {
            const NAMES: &'static [&'static str] = &[#(#captures),*];

            fn from_params(
                params: &::anywire::ParamMap<'_>,
            ) -> ::std::result::Result<Self, ::anywire::Failure> {
                ::std::result::Result::Ok(Self { #(#values),* })
            }
        }
    })
}

fn named(input: &DeriveInput) -> Result<Vec<(&Ident, &Field)>> {
    let message = "captures have names, so `Params` goes on a struct with named fields, as in \
                   `struct Place { region: String }`; for a single capture take `Param<T>`";
    match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => {
                let named = fields.named.iter();
                Ok(named
                    .filter_map(|field| Some((field.ident.as_ref()?, field)))
                    .collect())
            }
            Fields::Unnamed(fields) => Err(Error::new_spanned(fields, message)),
            Fields::Unit => Err(Error::new_spanned(&input.ident, message)),
        },
        Data::Enum(data) => Err(Error::new_spanned(data.enum_token, message)),
        Data::Union(data) => Err(Error::new_spanned(data.union_token, message)),
    }
}
