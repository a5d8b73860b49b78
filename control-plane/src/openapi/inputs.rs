//! What is true of all that callers write, said once.
//!
//! No text holds U+0000: extractors refuse it, as no column can hold it. Text that mustn't be empty mustn't be blank either. And a body that is one of several objects holds
//! nothing besides what its variant lists, which the derived schemas don't say.

use utoipa::openapi::{
    OpenApi, RefOr, Schema, Type,
    schema::{AdditionalProperties, ArrayItems, KnownFormat, Object, SchemaFormat, SchemaType},
};

use crate::extract::SAYS_SOMETHING;

/// Text without U+0000, in the regular expressions of ECMA-262.
const WITHOUT_NUL: &str = r"^[^\u0000]*$";

/// Completes the schemas of what callers write.
pub(super) fn complete(document: &mut OpenApi) {
    for schema in document.components.iter_mut().flat_map(|components| components.schemas.values_mut()) {
        walk(schema);
    }
    for item in document.paths.paths.values_mut() {
        for parameter in super::operations(item).flat_map(|operation| operation.parameters.iter_mut().flatten()) {
            if let RefOr::T(parameter) = parameter
                && let Some(schema) = &mut parameter.schema
            {
                walk(schema);
            }
        }
    }
}

fn walk(schema: &mut RefOr<Schema>) {
    let RefOr::T(schema) = schema else { return };
    match schema {
        Schema::Object(object) => {
            if is_free_text(object) {
                let said = object.format.is_none() && object.min_length.is_some();
                object.pattern = Some(if said { SAYS_SOMETHING } else { WITHOUT_NUL }.into());
            }
            object.properties.values_mut().for_each(walk);
        }
        Schema::Array(array) => {
            if let ArrayItems::RefOrSchema(items) = &mut array.items {
                walk(items);
            }
        }
        Schema::OneOf(one_of) => one_of.items.iter_mut().for_each(|item| {
            if let RefOr::T(Schema::Object(variant)) = item
                && !variant.properties.is_empty()
            {
                variant.additional_properties.get_or_insert_with(|| Box::new(AdditionalProperties::FreeForm(false)));
            }
            walk(item);
        }),
        Schema::AllOf(all_of) => all_of.items.iter_mut().for_each(walk),
        Schema::AnyOf(any_of) => any_of.items.iter_mut().for_each(walk),
        _ => {}
    }
}

/// Text of whose form nothing else is said. Only callers' texts have a limit.
fn is_free_text(object: &Object) -> bool {
    let text = match &object.schema_type {
        SchemaType::Type(kind) => *kind == Type::String,
        SchemaType::Array(kinds) => kinds.contains(&Type::String),
        SchemaType::AnyValue => false,
    };
    let free = matches!(object.format, None | Some(SchemaFormat::KnownFormat(KnownFormat::Password)));
    text && free && object.max_length.is_some() && object.pattern.is_none() && object.enum_values.is_none()
}
