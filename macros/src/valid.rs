//! The checks of what an attribute stands on, and what each says when it fails.

use proc_macro2::{Span, TokenStream};
use quote::ToTokens;
use syn::{
    Attribute, Error, Expr, FnArg, GenericArgument, Item, ItemImpl, Lit, PathArguments, Receiver,
    ReceiverKind, Result, ReturnType, Signature, Type, TypePath,
};

use crate::ast::{bare, typed};
use crate::attr::Kind;
use crate::pattern;

/// Extractors of the framework that hold something: `Param<Region>`.
const GENERIC_EXTRACTORS: [&str; 3] = ["Param", "Params", "State"];
/// Extractors of the framework that a user's own type might be named like.
const PLAIN_EXTRACTORS: [&str; 4] = ["Client", "Context", "Headers", "Subject"];

/// Checks the block that `#[controller]` stands on.
pub(crate) fn block(block: &ItemImpl) -> Result<()> {
    match &block.trait_ {
        Some((path, _)) => Err(Error::new_spanned(
            path,
            "`#[controller]` goes on the type's own block; move the handlers to an `impl` without a trait",
        )),
        None => Ok(()),
    }
}

/// Checks that nothing stands between the parentheses of `#[controller]`.
pub(crate) fn no_arguments(arguments: &TokenStream) -> Result<()> {
    if arguments.is_empty() {
        return Ok(());
    }
    Err(Error::new_spanned(
        arguments,
        "`#[controller]` takes no options; give them to the handlers, as in `#[event_pattern(\"shop.placed\", group = \"billing\")]`",
    ))
}

pub(crate) fn not_a_block(item: &Item) -> Error {
    let message = "`#[controller]` goes on an `impl` block, as in `#[controller] impl Shop { .. }`";
    Error::new(keyword(item), message)
}

pub(crate) fn not_a_function(kind: Kind, item: &Item) -> Error {
    let attribute = kind.attribute();
    let message = match item {
        Item::Impl(_) => {
            format!("`#[{attribute}]` goes on a method; put `#[controller]` on the `impl` block")
        }
        _ => format!("`#[{attribute}]` goes on an `async fn`"),
    };
    Error::new(keyword(item), message)
}

/// The word that says what an item is.
fn keyword(item: &Item) -> Span {
    match item {
        Item::Struct(item) => item.struct_token.span,
        Item::Enum(item) => item.enum_token.span,
        Item::Fn(item) => item.sig.fn_token.span,
        Item::Impl(item) => item.impl_token.span,
        Item::Trait(item) => item.trait_token.span,
        Item::Mod(item) => item.mod_token.span,
        _ => Span::call_site(),
    }
}

pub(crate) fn no_handlers(block: &ItemImpl) -> Error {
    Error::new_spanned(
        &block.self_ty,
        "no method here is a handler; put `#[event_pattern(\"..\")]`, `#[message_pattern(\"..\")]` or `#[stream_pattern(\"..\")]` on those that are",
    )
}

pub(crate) fn second_pattern(attribute: &Attribute) -> Error {
    Error::new_spanned(
        attribute,
        "a handler listens to one pattern; remove this, or write a second function for it",
    )
}

/// Checks what an attribute stands on when it is not in a controller.
pub(crate) fn free_function(signature: &Signature) -> Result<()> {
    match signature.receiver() {
        Some(receiver) => Err(Error::new_spanned(
            receiver,
            "a handler with `self` needs `#[controller]` on its `impl` block; put it there, or remove `self`",
        )),
        None => Ok(()),
    }
}

/// Checks a handler's signature.
pub(crate) fn signature(kind: Kind, signature: &Signature) -> Result<()> {
    let name = &signature.ident;
    if signature.asyncness.is_none() && kind != Kind::Stream {
        let message = format!("a handler is asynchronous; write `async fn {name}`");
        return Err(Error::new_spanned(signature.fn_token, message));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &signature.generics,
            "a handler is not generic: the framework could not tell what to call it with; name the types, or make the \
             `impl` block generic",
        ));
    }
    for input in &signature.inputs {
        argument(input)?;
    }
    payload_comes_first(signature)?;
    match (kind, &signature.output) {
        (Kind::Call, ReturnType::Default) => Err(Error::new_spanned(
            name,
            "a call is answered, so its handler returns the reply; add `-> Result<Reply>`, or use `#[event_pattern]`",
        )),
        (Kind::Stream, ReturnType::Default) => Err(Error::new_spanned(
            name,
            "a streaming call is answered; add `-> impl Stream<Item = Result<Reply>>`, or `-> Result<Reply>` to an \
             `async fn` that takes `Inbound<Item>`",
        )),
        _ => Ok(()),
    }
}

fn argument(input: &FnArg) -> Result<()> {
    let argument = match input {
        FnArg::Receiver(receiver) => return self_is_shared(receiver),
        FnArg::Typed(argument) => argument,
    };
    match &*argument.ty {
        Type::Reference(reference) => {
            let owned = match reference.elem.to_token_stream().to_string().as_str() {
                "str" => "String".to_owned(),
                elem if elem.starts_with('[') => "Vec<_>".to_owned(),
                elem => elem.to_owned(),
            };
            let message = format!("a handler owns its arguments; write `{owned}`");
            Err(Error::new_spanned(reference, message))
        }
        Type::ImplTrait(ty) => Err(Error::new_spanned(
            ty,
            "a handler is not generic: the framework could not tell what to call it with; name the type",
        )),
        _ => Ok(()),
    }
}

fn self_is_shared(receiver: &Receiver) -> Result<()> {
    match &receiver.kind {
        ReceiverKind::Reference(_, _, None) => Ok(()),
        ReceiverKind::Reference(_, _, Some(_)) => Err(Error::new_spanned(
            receiver,
            "handlers run at the same time and share the controller; take `&self` and keep what changes in a `Mutex` \
             or an atomic",
        )),
        _ => Err(Error::new_spanned(
            receiver,
            "the controller serves many messages, so a handler cannot have it for itself; take `&self`",
        )),
    }
}

fn payload_comes_first(signature: &Signature) -> Result<()> {
    let Some(first) = typed(signature).next() else {
        let name = &signature.ident;
        return Err(Error::new_spanned(
            name,
            "a handler takes the payload first; write `_: Ignore` where there is none wanted",
        ));
    };
    let Some(extractor) = extractor(first) else {
        return Ok(());
    };
    let mut message = format!(
        "the payload comes first and `{extractor}` is not one; put the payload before it, or `_: Ignore` where there \
         is none wanted"
    );
    if PLAIN_EXTRACTORS.contains(&extractor.as_str()) {
        message += &format!(
            " (a type of your own of that name goes by its path, as in `self::{extractor}`)"
        );
    }
    Err(Error::new_spanned(first, message))
}

/// The name of an extractor of the framework, where that is what the type is.
fn extractor(ty: &Type) -> Option<String> {
    let TypePath {
        qself: None, path, ..
    } = path_of(ty)?
    else {
        return None;
    };
    let ours = path.segments.len() == 1
        || path.segments.len() == 2 && path.segments.first()?.ident == "anywire";
    let last = path.segments.last()?;
    let name = last.ident.to_string();
    let held = match &last.arguments {
        PathArguments::AngleBracketed(held) => held.args.iter().filter(is_type).count(),
        _ => 0,
    };
    let found = held == 1 && GENERIC_EXTRACTORS.contains(&name.as_str())
        || held == 0 && PLAIN_EXTRACTORS.contains(&name.as_str());
    (ours && found).then_some(name)
}

fn is_type(argument: &&GenericArgument) -> bool {
    matches!(argument, GenericArgument::Type(_))
}

fn path_of(ty: &Type) -> Option<&TypePath> {
    match ty {
        Type::Path(path) => Some(path),
        Type::Group(group) => path_of(&group.elem),
        Type::Paren(paren) => path_of(&paren.elem),
        _ => None,
    }
}

/// Checks a pattern that is written in place, and that it captures as much as the function asks for.
pub(crate) fn target(target: &Expr, signature: &Signature) -> Result<()> {
    let literal = match bare(target) {
        Expr::Lit(literal) => &literal.lit,
        _ => return Ok(()),
    };
    let Lit::Str(text) = literal else {
        let message =
            "a pattern is a string, as in `\"shop.placed\"`, or a contract const, as in `PLACED`";
        return Err(Error::new_spanned(literal, message));
    };
    let captures = pattern::captures(text)?.len();
    let mut params = typed(signature).filter(|ty| extractor(ty).as_deref() == Some("Param"));
    let Some(excess) = params.nth(captures) else {
        return Ok(());
    };
    let pattern = text.value();
    let holds = match captures {
        0 => "captures nothing".to_owned(),
        1 => "has one capture".to_owned(),
        _ => format!("has {captures} captures"),
    };
    let message = format!(
        "`{pattern}` {holds}, so nothing is left for this `Param`; add a capture to the pattern, as in `{{name}}`, or \
         remove the argument"
    );
    Err(Error::new_spanned(excess, message))
}
