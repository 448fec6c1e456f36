//! The syntax of an attribute: a target first, options after it.

use proc_macro2::{Span, TokenStream};
use syn::parse::{Parse, ParseStream, Parser};
use syn::{Attribute, Error, Expr, Ident, Meta, Path, Result, Token};

/// Which attribute it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Event,
    Call,
    Stream,
}

impl Kind {
    /// The kind that a path names, in its long form (`anywire::event_pattern`) or its short one.
    pub(crate) fn named(path: &Path) -> Option<Self> {
        let last = &path.segments.last()?.ident;
        [Self::Event, Self::Call, Self::Stream]
            .into_iter()
            .find(|kind| last == kind.attribute())
    }

    pub(crate) fn attribute(self) -> &'static str {
        match self {
            Self::Event => "event_pattern",
            Self::Call => "message_pattern",
            Self::Stream => "stream_pattern",
        }
    }

    /// A use of the attribute, for messages.
    pub(crate) fn example(self) -> &'static str {
        match self {
            Self::Event => "#[event_pattern(\"shop.placed\")]",
            Self::Call => "#[message_pattern(\"shop.quote\")]",
            Self::Stream => "#[stream_pattern(\"shop.follow\")]",
        }
    }
}

/// An option as the user wrote it.
pub(crate) struct Written {
    pub(crate) key: Ident,
    pub(crate) value: Option<Expr>,
}

/// What stands between an attribute's parentheses.
pub(crate) struct Arguments {
    pub(crate) target: Expr,
    pub(crate) options: Vec<Written>,
}

impl Arguments {
    /// Reads what the compiler hands to an attribute macro; `attribute` is what to point at where there is nothing.
    pub(crate) fn read(kind: Kind, attribute: Span, tokens: TokenStream) -> Result<Self> {
        if tokens.is_empty() {
            let example = kind.example();
            let message = format!("say what the handler listens to, as in `{example}`");
            return Err(Error::new(attribute, message));
        }
        (|input: ParseStream<'_>| Self::parse(kind, input)).parse2(tokens)
    }

    /// Reads an attribute that still stands on its method.
    pub(crate) fn of(kind: Kind, attribute: &Attribute) -> Result<Self> {
        match &attribute.meta {
            Meta::Path(path) => Self::read(kind, span_of(path), TokenStream::new()),
            Meta::List(list) => Self::read(kind, span_of(&list.path), list.tokens.clone()),
            Meta::NameValue(pair) => Err(Error::new(
                pair.eq_token.span,
                format!("write it in parentheses, as in `{}`", kind.example()),
            )),
        }
    }

    fn parse(kind: Kind, input: ParseStream<'_>) -> Result<Self> {
        if input.peek(Ident) && input.peek2(Token![=]) && !input.peek2(Token![==]) {
            return Err(input.error(format!(
                "the pattern comes first, as in `{}`; options follow it",
                kind.example()
            )));
        }
        let target = input.parse()?;
        let mut options = Vec::new();
        while !input.is_empty() {
            input.parse::<Token![,]>()?;
            if !input.is_empty() {
                options.push(input.parse()?);
            }
        }
        Ok(Self { target, options })
    }
}

impl Parse for Written {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let Ok(key) = input.parse::<Ident>() else {
            return Err(input.error("expected an option, as in `concurrency = 32`"));
        };
        let value = if input.parse::<Option<Token![=]>>()?.is_some() {
            Some(input.parse()?)
        } else {
            None
        };
        Ok(Self { key, value })
    }
}

/// The attribute's own name, which is what a message about it points at.
fn span_of(path: &Path) -> Span {
    path.segments
        .last()
        .map_or_else(Span::call_site, |last| last.ident.span())
}
