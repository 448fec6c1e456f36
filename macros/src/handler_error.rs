//! `#[derive(HandlerError)]`: what a typed error tells the framework and the caller.

use proc_macro2::TokenStream;
use quote::{format_ident, quote_spanned};
use syn::ext::IdentExt;
use syn::meta::ParseNestedMeta;
use syn::{Attribute, Data, DeriveInput, Error, Fields, Ident, LitStr, Result};

use crate::ast::ours;
use crate::message::Message;
use crate::option::nearest;

/// A variant of an enum, or a struct as a whole.
struct Shape {
    ident: Ident,
    /// How a pattern names it: `Self::UnknownItem`, `Self`.
    path: TokenStream,
    code: String,
    class: Option<Ident>,
    message: Option<Message>,
}

/// What the attributes on one item say.
#[derive(Default)]
struct Attributes {
    code: Option<LitStr>,
    class: Option<Ident>,
    message: Option<LitStr>,
    no_details: Option<Ident>,
}

pub(crate) fn derive(input: &DeriveInput) -> Result<TokenStream> {
    let own = Attributes::read(&input.attrs)?;
    let default_class = own.class.clone();
    let details = if own.no_details.is_some() {
        quote_spanned!(ours()=> ::std::option::Option::None)
    } else {
        let span = input.ident.span().resolved_at(ours());
        quote_spanned!(span=> ::anywire::__private::details(self))
    };
    let shapes = shapes(input, own)?;
    let codes = arms(&shapes, |shape| {
        let code = &shape.code;
        quote_spanned!(ours()=> ::std::borrow::Cow::Borrowed(#code))
    });
    let classes = arms(&shapes, |shape| {
        class(shape.class.as_ref().or(default_class.as_ref()))
    });
    let messages = messages(&shapes);
    let name = &input.ident;
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    Ok(quote_spanned! {ours()=>
        #[automatically_derived]
        impl #generics ::anywire::HandlerError for #name #arguments #bounds {
            fn code(&self) -> ::std::borrow::Cow<'static, str> {
                #codes
            }

            fn message(&self) -> ::std::string::String {
                #messages
            }

            fn class(&self) -> ::anywire::Class {
                #classes
            }

            fn details(&self) -> ::std::option::Option<::anywire::__private::Value> {
                #details
            }
        }
    })
}

/// A `match` over the shapes. An enum without variants has no value, and no arms.
fn arms(shapes: &[Shape], value: impl Fn(&Shape) -> TokenStream) -> TokenStream {
    if shapes.is_empty() {
        return quote_spanned!(ours()=> match *self {});
    }
    let paths = shapes.iter().map(|shape| &shape.path);
    let values = shapes.iter().map(value);
    quote_spanned!(ours()=> match self { #(#paths { .. } => #values,)* })
}

fn messages(shapes: &[Shape]) -> TokenStream {
    let Some(first) = shapes.first() else {
        return arms(shapes, |_| TokenStream::new());
    };
    if shapes.iter().all(|shape| shape.message.is_none()) {
        return display(first);
    }
    let arms = shapes.iter().map(|shape| {
        let path = &shape.path;
        match &shape.message {
            Some(message) => {
                let fields = message.fields();
                quote_spanned!(ours()=> #path { #(#fields,)* .. } => #message)
            }
            None => {
                let display = display(shape);
                quote_spanned!(ours()=> #path { .. } => #display)
            }
        }
    });
    quote_spanned!(ours()=> match self { #(#arms,)* })
}

/// At the user's own name: that is where the compiler says that there is no `Display`.
fn display(shape: &Shape) -> TokenStream {
    let span = shape.ident.span().resolved_at(ours());
    quote_spanned!(span=> ::std::string::ToString::to_string(self))
}

fn class(word: Option<&Ident>) -> TokenStream {
    let variant = match word {
        Some(word) if word == "transient" => format_ident!("Transient", span = ours()),
        Some(word) if word == "discard" => format_ident!("Discard", span = ours()),
        _ => format_ident!("Permanent", span = ours()),
    };
    quote_spanned!(ours()=> ::anywire::Class::#variant)
}

fn shapes(input: &DeriveInput, own: Attributes) -> Result<Vec<Shape>> {
    match &input.data {
        Data::Struct(data) => {
            let path = quote_spanned!(ours()=> Self);
            Ok(vec![Shape::read(&input.ident, path, &data.fields, own)?])
        }
        Data::Enum(data) => {
            if let Some(literal) = own.code.or(own.message) {
                let message = "the variants of an enum have their own; move this to a variant";
                return Err(Error::new(literal.span(), message));
            }
            let variants = data.variants.iter().map(|variant| {
                let ident = &variant.ident;
                let own = Attributes::read(&variant.attrs)?;
                if let Some(word) = &own.no_details {
                    let message = "details are of the whole error; move `no_details` to the enum";
                    return Err(Error::new(word.span(), message));
                }
                Shape::read(
                    ident,
                    quote_spanned!(ours()=> Self::#ident),
                    &variant.fields,
                    own,
                )
            });
            variants.collect()
        }
        Data::Union(data) => Err(Error::new(
            data.union_token.span,
            "`HandlerError` goes on an enum or a struct; write an `enum` with a variant for each error",
        )),
    }
}

impl Shape {
    fn read(ident: &Ident, path: TokenStream, fields: &Fields, own: Attributes) -> Result<Self> {
        let message = own.message.map(|text| Message::read(&text, ident, fields));
        let code = own.code.map(|code| code.value());
        Ok(Self {
            ident: ident.clone(),
            path,
            code: code.unwrap_or_else(|| snake_case(&ident.unraw().to_string())),
            class: own.class,
            message: message.transpose()?,
        })
    }
}

impl Attributes {
    fn read(attributes: &[Attribute]) -> Result<Self> {
        let mut read = Self::default();
        for attribute in attributes {
            if attribute.path().is_ident("handler_error") {
                attribute.parse_nested_meta(|meta| read.entry(&meta))?;
            }
        }
        Ok(read)
    }

    fn entry(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        const KNOWN: [&str; 6] = [
            "code",
            "message",
            "permanent",
            "transient",
            "discard",
            "no_details",
        ];
        let key = meta.path.require_ident()?.clone();
        let word = key.to_string();
        let twice = match word.as_str() {
            "code" => self.code.replace(text(meta)?).is_some(),
            "message" => self.message.replace(text(meta)?).is_some(),
            "no_details" => self.no_details.replace(key.clone()).is_some(),
            "permanent" | "transient" | "discard" => match self.class.replace(key.clone()) {
                Some(other) if other != key => {
                    let message = format!("an error is either `{other}` or `{key}`; keep one");
                    return Err(Error::new(key.span(), message));
                }
                other => other.is_some(),
            },
            _ => {
                let message = format!("unknown option `{word}`; {}", nearest(&word, &KNOWN));
                return Err(Error::new(key.span(), message));
            }
        };
        if twice {
            let message = format!("`{word}` is given twice; keep one");
            return Err(Error::new(key.span(), message));
        }
        Ok(())
    }
}

fn text(meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    let example = match meta.path.is_ident("code") {
        true => "code = \"unknown_item\"",
        false => "message = \"no item {sku}\"",
    };
    let wrong = |error: Error| {
        Error::new(
            error.span(),
            format!("expected a string, as in `{example}`"),
        )
    };
    let text: LitStr = meta.value().map_err(wrong)?.parse().map_err(wrong)?;
    if text.value().is_empty() {
        return Err(Error::new(
            text.span(),
            format!("this is empty; write `{example}`"),
        ));
    }
    Ok(text)
}

/// `UnknownItem` to `unknown_item`, `HTTPError` to `http_error`.
fn snake_case(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let mut snake = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| letters.get(at));
        let after = letters.get(at + 1);
        let begins_word = before.is_some_and(|it| it.is_lowercase() || it.is_ascii_digit())
            || before.is_some_and(|it| it.is_uppercase())
                && after.is_some_and(|it| it.is_lowercase());
        if letter.is_uppercase() && begins_word {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::snake_case;

    #[test]
    fn codes_are_in_snake_case() {
        let names = ["UnknownItem", "HTTPError", "Gone", "Http2Reset", "IoError2"];
        let codes = [
            "unknown_item",
            "http_error",
            "gone",
            "http2_reset",
            "io_error2",
        ];
        assert_eq!(names.map(snake_case), codes);
    }
}
