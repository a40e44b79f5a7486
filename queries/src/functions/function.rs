//! What every function of the library is made of, so that one function is one table entry and one kernel.
//!
//! Text arguments may be of any Arrow string type: DataFusion casts them to views (which copies no text), and
//! kernels see views only.

use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringViewArray};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{DataFusionError, Result, ScalarValue, internal_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

/// One function of the library: what the generated reference shows, and how it is evaluated.
pub struct Function {
    /// The name; SQL may write it in any case.
    pub name: &'static str,
    /// Name, parameters and result, as a reader writes it down.
    pub signature: &'static str,
    /// What it does, in a sentence or two of Markdown.
    pub doc: &'static str,
    /// An expression and its value as text.
    pub example: (&'static str, &'static str),
    pub(crate) parameters: Parameters,
    /// The type of the result, given the number of arguments.
    pub(crate) returns: fn(usize) -> DataType,
    /// Refuses constants that could never work, so that a configuration with them never starts.
    pub(crate) check: fn(&Constants<'_>) -> Result<(), String>,
    pub(crate) evaluate: fn(&Arguments<'_>) -> Result<ArrayRef>,
}

impl Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.signature)
    }
}

/// The parameters of a function.
pub(crate) struct Parameters {
    pub(crate) required: &'static [Kind],
    pub(crate) optional: &'static [Kind],
    /// The kind of any number of further arguments.
    pub(crate) more: Option<Kind>,
}

/// What an argument may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text; whole numbers are taken as their digits.
    Text,
    /// Text or a list of texts.
    TextOrList,
}

/// The constant texts among the arguments of a call.
pub(crate) struct Constants<'a>(&'a [Option<&'a ScalarValue>]);

impl<'a> Constants<'a> {
    /// The constant text at `index`; `None` if it is absent, null or not constant.
    pub(crate) fn text(&self, index: usize) -> Option<&'a str> {
        self.0.get(index).copied().flatten().and_then(|value| value.try_as_str().flatten())
    }

    /// The constant texts at `index`, of a text or a list.
    pub(crate) fn texts(&self, index: usize) -> Vec<String> {
        self.0.get(index).copied().flatten().map(scalar_texts).unwrap_or_default()
    }

    /// An error unless the argument at `index` is absent or constant.
    pub(crate) fn require(&self, index: usize, what: &str) -> Result<(), String> {
        match self.0.get(index) {
            Some(None) => Err(format!("{what} must be a constant")),
            _ => Ok(()),
        }
    }

    /// The number of arguments.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The arguments of a call on a batch.
pub(crate) struct Arguments<'a> {
    values: &'a [ColumnarValue],
    /// How long the result is.
    pub(crate) rows: usize,
}

impl<'a> Arguments<'a> {
    /// The number of arguments.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// The text argument at `index`.
    pub(crate) fn text(&self, index: usize) -> Result<Text<'a>> {
        match self.values.get(index) {
            Some(ColumnarValue::Scalar(value)) => Ok(Text::Constant(value.try_as_str().flatten())),
            Some(ColumnarValue::Array(array)) => match array.as_string_view_opt() {
                Some(column) => Ok(Text::Column(column)),
                None => internal_err!("argument {index} is {}, not text", array.data_type()),
            },
            None => internal_err!("argument {index} is absent"),
        }
    }

    /// The texts at `index` if they are constant and not null; of a text or a list.
    pub(crate) fn constant_texts(&self, index: usize) -> Option<Vec<String>> {
        match self.values.get(index)? {
            ColumnarValue::Scalar(value) if !value.is_null() => Some(scalar_texts(value)),
            _ => None,
        }
    }

    /// Whether the argument at `index` is null in a row.
    pub(crate) fn is_null(&self, index: usize, row: usize) -> bool {
        match &self.values[index] {
            ColumnarValue::Scalar(value) => value.is_null(),
            ColumnarValue::Array(array) => array.is_null(row),
        }
    }

    /// The texts of one row at `index`, of a text or a list.
    pub(crate) fn row_texts(&self, index: usize, row: usize) -> Result<Vec<String>> {
        match &self.values[index] {
            ColumnarValue::Scalar(value) => Ok(scalar_texts(value)),
            ColumnarValue::Array(array) => Ok(scalar_texts(&ScalarValue::try_from_array(array, row)?)),
        }
    }

    /// The column at `index` as it came, if it is one.
    pub(crate) fn column(&self, index: usize) -> Option<&'a ArrayRef> {
        match self.values.get(index)? {
            ColumnarValue::Array(array) => Some(array),
            ColumnarValue::Scalar(_) => None,
        }
    }
}

fn scalar_texts(value: &ScalarValue) -> Vec<String> {
    match value {
        ScalarValue::List(list) if list.is_valid(0) => {
            let items = list.value(0);
            match items.as_string_view_opt() {
                Some(items) => items.iter().flatten().map(str::to_owned).collect(),
                None => Vec::new(),
            }
        }
        _ => value.try_as_str().flatten().map(str::to_owned).into_iter().collect(),
    }
}

/// A text argument: one value for all rows, or one for each.
#[derive(Clone, Copy)]
pub(crate) enum Text<'a> {
    Constant(Option<&'a str>),
    Column(&'a StringViewArray),
}

impl<'a> Text<'a> {
    /// The text of a row; `None` if it is null.
    pub(crate) fn get(self, row: usize) -> Option<&'a str> {
        match self {
            Self::Constant(text) => text,
            Self::Column(column) => column.is_valid(row).then(|| column.value(row)),
        }
    }
}

/// A [`Function`] as DataFusion wants it.
#[derive(Debug)]
pub(crate) struct Udf {
    function: &'static Function,
    signature: Signature,
}

impl Udf {
    pub(crate) fn new(function: &'static Function) -> Self {
        Self { function, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl PartialEq for Udf {
    fn eq(&self, other: &Self) -> bool {
        self.function.name == other.function.name
    }
}

impl Eq for Udf {}

impl Hash for Udf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.name.hash(state);
    }
}

impl ScalarUDFImpl for Udf {
    fn name(&self) -> &str {
        self.function.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok((self.function.returns)(arguments.len()))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        if let Err(reason) = (self.function.check)(&Constants(args.scalar_arguments)) {
            return plan_err!("{}: {reason}", self.function.name);
        }
        let returns = (self.function.returns)(args.arg_fields.len());
        Ok(Arc::new(Field::new(self.function.name, returns, true)))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let Parameters { required, optional, more } = &self.function.parameters;
        let kinds = required.iter().chain(*optional).chain(more.iter().cycle());
        let coerced: Vec<DataType> = types
            .iter()
            .zip(kinds)
            .enumerate()
            .map(|(index, (found, kind))| match kind.accept(found) {
                Some(accepted) => Ok(accepted),
                None => plan_err!(
                    "argument {} of {} must be text, not {found}: {}",
                    index + 1,
                    self.function.name,
                    self.function.signature
                ),
            })
            .collect::<Result<_>>()?;
        if coerced.len() < types.len() || types.len() < required.len() {
            return plan_err!("wrong number of arguments ({}): {}", types.len(), self.function.signature);
        }
        Ok(coerced)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arguments = Arguments { values: &args.args, rows: args.number_rows };
        Ok(ColumnarValue::Array((self.function.evaluate)(&arguments)?))
    }
}

impl Kind {
    /// The type that a value of type `found` is cast to; `None` if it cannot be this argument.
    fn accept(self, found: &DataType) -> Option<DataType> {
        match found {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => {
                Some(DataType::Utf8View)
            }
            t if t.is_integer() => Some(DataType::Utf8View),
            DataType::Dictionary(_, values) => self.accept(values),
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _)
                if self == Self::TextOrList =>
            {
                Self::Text.accept(item.data_type())?;
                Some(DataType::List(Arc::new(Field::new("item", DataType::Utf8View, true))))
            }
            _ => None,
        }
    }
}

/// A `check` for functions that take any constants.
pub(crate) fn any(_: &Constants<'_>) -> Result<(), String> {
    Ok(())
}

/// An execution error with this text.
pub(crate) fn failed(reason: impl Into<String>) -> DataFusionError {
    DataFusionError::Execution(reason.into())
}
