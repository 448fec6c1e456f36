//! The annotated items, as our own structs.

use std::time::Duration;

use proc_macro2::{Span, TokenStream};
use syn::ext::IdentExt;
use syn::{
    Attribute, Expr, FnArg, Ident, ImplItem, ItemFn, ItemImpl, Lit, Meta, Result, ReturnType,
    Signature, Type,
};

use crate::attr::{Arguments, Kind};
use crate::{option, valid};

/// A handler: what its attribute says and what its function looks like.
pub(crate) struct Handler {
    pub(crate) kind: Kind,
    pub(crate) target: Expr,
    pub(crate) settings: Vec<Setting>,
    pub(crate) ident: Ident,
    pub(crate) doc: Option<String>,
    pub(crate) cfgs: Vec<Attribute>,
    pub(crate) receiver: bool,
    pub(crate) arguments: Vec<Type>,
    pub(crate) output: Option<Type>,
}

/// An option that was understood: the method of `Route` that sets it, and what it is given.
pub(crate) struct Setting {
    pub(crate) method: Ident,
    pub(crate) value: Value,
}

pub(crate) enum Value {
    /// The method takes nothing.
    Set,
    /// As the user wrote it.
    Written(Expr),
    Wait(Duration),
    Waits(Vec<Duration>),
    /// A variant of an enum of `anywire`.
    Variant(Ident, Ident),
}

impl Handler {
    /// Reads a function whose inert attributes were taken off.
    pub(crate) fn read(
        kind: Kind,
        arguments: Arguments,
        attributes: &[Attribute],
        signature: &Signature,
    ) -> Result<Self> {
        let Arguments { target, options } = arguments;
        valid::signature(kind, signature)?;
        valid::target(&target, signature)?;
        Ok(Self {
            kind,
            target,
            settings: option::read(kind, options)?,
            ident: signature.ident.clone(),
            doc: doc(attributes),
            cfgs: cfgs(attributes),
            receiver: signature.receiver().is_some(),
            arguments: typed(signature).cloned().collect(),
            output: match &signature.output {
                ReturnType::Type(_, ty) => Some((**ty).clone()),
                ReturnType::Default => None,
            },
        })
    }

    /// Where the compiler points when the function as a whole is wrong, as one whose future is not `Send`.
    pub(crate) fn span(&self) -> Span {
        self.ident.span().resolved_at(ours())
    }

    /// What configuration, logs and dead letters call it, unless an option says otherwise.
    pub(crate) fn default_name(&self) -> String {
        self.ident.unraw().to_string()
    }
}

/// Reads an annotated function.
pub(crate) fn free_function(
    kind: Kind,
    arguments: TokenStream,
    function: &mut ItemFn,
) -> Result<Handler> {
    let others = take(&mut function.attrs);
    valid::free_function(&function.sig)?;
    if let Some((_, second)) = others.first() {
        return Err(valid::second_pattern(second));
    }
    let arguments = Arguments::read(kind, Span::call_site(), arguments)?;
    Handler::read(kind, arguments, &function.attrs, &function.sig)
}

/// Takes the inert attributes off a function.
fn take(attributes: &mut Vec<Attribute>) -> Vec<(Kind, Attribute)> {
    let mut taken = Vec::new();
    attributes.retain(|attribute| match Kind::named(attribute.path()) {
        Some(kind) => {
            taken.push((kind, attribute.clone()));
            false
        }
        None => true,
    });
    taken
}

/// Takes the inert attributes off a block's methods and reads the handlers that they make.
///
/// All methods are read, so that each wrong one is told of in the same build.
pub(crate) fn handlers(block: &mut ItemImpl) -> Result<Vec<Handler>> {
    let mut handlers = Vec::new();
    let mut errors = valid::block(block).err();
    for item in &mut block.items {
        match handler(item) {
            Ok(handler) => handlers.extend(handler),
            Err(error) => match &mut errors {
                Some(errors) => errors.combine(error),
                None => errors = Some(error),
            },
        }
    }
    match errors {
        Some(errors) => Err(errors),
        None if handlers.is_empty() => Err(valid::no_handlers(block)),
        None => Ok(handlers),
    }
}

fn handler(item: &mut ImplItem) -> Result<Option<Handler>> {
    let ImplItem::Fn(method) = item else {
        return Ok(None);
    };
    let mut taken = take(&mut method.attrs).into_iter();
    let Some((kind, attribute)) = taken.next() else {
        return Ok(None);
    };
    if let Some((_, second)) = taken.next() {
        return Err(valid::second_pattern(&second));
    }
    let arguments = Arguments::of(kind, &attribute)?;
    Handler::read(kind, arguments, &method.attrs, &method.sig).map(Some)
}

/// The types of the arguments after the receiver.
pub(crate) fn typed(signature: &Signature) -> impl Iterator<Item = &Type> {
    signature.inputs.iter().filter_map(|input| match input {
        FnArg::Typed(argument) => Some(&*argument.ty),
        FnArg::Receiver(_) => None,
    })
}

/// The conditions under which an item exists, for what is written beside it.
pub(crate) fn cfgs(attributes: &[Attribute]) -> Vec<Attribute> {
    let cfgs = attributes.iter().filter(|it| it.path().is_ident("cfg"));
    cfgs.cloned().collect()
}

/// The doc comment, a line per line.
fn doc(attributes: &[Attribute]) -> Option<String> {
    let lines = attributes.iter().filter_map(|attribute| {
        let Meta::NameValue(pair) = &attribute.meta else {
            return None;
        };
        match &pair.value {
            Expr::Lit(value) if pair.path.is_ident("doc") => match &value.lit {
                Lit::Str(text) => Some(text.value()),
                _ => None,
            },
            _ => None,
        }
    });
    let lines: Vec<String> = lines
        .map(|line| {
            line.strip_prefix(' ')
                .unwrap_or(&line)
                .trim_end()
                .to_owned()
        })
        .collect();
    let text = lines.join("\n");
    let text = text.trim_matches('\n');
    (!text.is_empty()).then(|| text.to_owned())
}

/// The expression within the invisible parentheses that `macro_rules!` puts around what it passes on.
pub(crate) fn bare(expr: &Expr) -> &Expr {
    match expr {
        Expr::Group(group) => bare(&group.expr),
        _ => expr,
    }
}

/// The span of what the expansion writes: its variables cannot be seen by the user's code, nor the user's by it.
pub(crate) fn ours() -> Span {
    Span::mixed_site()
}
