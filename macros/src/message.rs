//! The text of `#[handler_error(message = "no item {sku}")]`.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::{Error, Fields, Ident, LitStr, Member, Result};

use crate::ast::ours;
use crate::option::nearest;

/// A format string whose placeholders are fields.
pub(crate) struct Message {
    /// With `{0}` as `{_0}`, the name that the field is bound to.
    format: LitStr,
    /// The fields in it, each with the name that it is bound to.
    fields: Vec<(Member, Ident)>,
}

impl Message {
    /// Reads a text; `owner` is the variant or struct whose fields it may hold.
    pub(crate) fn read(text: &LitStr, owner: &Ident, fields: &Fields) -> Result<Self> {
        let members: Vec<Member> = fields.members().collect();
        let mut format = String::new();
        let mut used: Vec<(Member, Ident)> = Vec::new();
        let value = text.value();
        let mut rest = value.as_str();
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at + 1);
            format.push_str(before);
            rest = from;
            if let Some(escaped) = rest.strip_prefix('{') {
                format.push('{');
                rest = escaped;
                continue;
            }
            let (name, after) = rest.split_at(rest.find([':', '}']).unwrap_or(rest.len()));
            rest = after;
            let member = find(name.trim(), &members)
                .ok_or_else(|| Error::new(text.span(), unknown(name.trim(), owner, &members)))?;
            let binding = binding(member, text.span());
            format.push_str(&binding.unraw().to_string());
            if !used.iter().any(|(known, _)| known == member) {
                used.push((member.clone(), binding));
            }
        }
        format.push_str(rest);
        Ok(Self {
            format: LitStr::new(&format, text.span()),
            fields: used,
        })
    }

    /// The fields of the pattern that binds what the text holds.
    pub(crate) fn fields(&self) -> impl Iterator<Item = TokenStream> {
        self.fields.iter().map(|(member, binding)| match member {
            Member::Named(_) => quote!(#binding),
            Member::Unnamed(_) => quote_spanned!(ours()=> #member: #binding),
        })
    }
}

impl ToTokens for Message {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let format = &self.format;
        tokens.extend(quote_spanned!(ours()=> ::std::format!(#format)));
    }
}

fn find<'a>(name: &str, members: &'a [Member]) -> Option<&'a Member> {
    members.iter().find(|member| text(member) == name)
}

fn text(member: &Member) -> String {
    match member {
        Member::Named(ident) => ident.unraw().to_string(),
        Member::Unnamed(index) => index.index.to_string(),
    }
}

/// The variable of a field; the compiler looks it up from where the text stands.
fn binding(member: &Member, span: Span) -> Ident {
    match member {
        Member::Named(ident) => {
            let mut ident = ident.clone();
            ident.set_span(span);
            ident
        }
        Member::Unnamed(index) => Ident::new(&format!("_{}", index.index), span),
    }
}

fn unknown(name: &str, owner: &Ident, members: &[Member]) -> String {
    let known: Vec<String> = members.iter().map(text).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    match (name, known.first()) {
        (_, None) => format!("`{owner}` has no fields; write `{{{{` for a brace"),
        ("", Some(first)) => format!("name the field, as in `{{{first}}}`"),
        _ => format!("`{owner}` has no field `{name}`; {}", nearest(name, &known)),
    }
}
