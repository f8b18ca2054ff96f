// Calls any operator of LibTorch's dispatcher by its schema: CTValue in, CTValue out.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "Shim.h"

namespace graft {
namespace {

using c10::IValue;
using c10::TypeKind;

const c10::Type &withoutOptional(const c10::Type &type) {
    if (type.kind() == TypeKind::OptionalType) return *type.castRaw<c10::OptionalType>()->getElementType();
    return type;
}

IValue tensorList(const CTValue &value, const c10::Type &type) {
    auto items = static_cast<CTTensor const *>(value.pointer);
    bool optionalItems = false;
    if (auto list = type.castRaw<c10::ListType>())
        optionalItems = list->getElementType()->kind() == TypeKind::OptionalType;
    if (optionalItems) {
        c10::List<std::optional<at::Tensor>> list;
        list.reserve(value.count);
        for (int64_t i = 0; i < value.count; ++i)
            list.push_back(items[i] ? std::optional<at::Tensor>(tensor(items[i])) : std::nullopt);
        return list;
    }
    c10::List<at::Tensor> list;
    list.reserve(value.count);
    for (int64_t i = 0; i < value.count; ++i) {
        TORCH_CHECK(items[i], "item ", i, " of a tensor list is absent");
        list.push_back(tensor(items[i]));
    }
    return list;
}

template <class Item>
IValue numberList(const Item *items, int64_t count, TypeKind wanted) {
    if (wanted == TypeKind::FloatType) return std::vector<double>(items, items + count);
    if (wanted == TypeKind::NumberType) {
        c10::List<at::Scalar> scalars;
        for (int64_t i = 0; i < count; ++i) scalars.push_back(items[i]);
        return scalars;
    }
    if (wanted == TypeKind::BoolType) {
        c10::List<bool> bools;
        for (int64_t i = 0; i < count; ++i) bools.push_back(items[i] != 0);
        return bools;
    }
    return std::vector<int64_t>(items, items + count);
}

TypeKind itemKind(const c10::Type &type) {
    auto list = type.castRaw<c10::ListType>();
    return list ? withoutOptional(*list->getElementType()).kind() : TypeKind::AnyType;
}

bool isOneOf(TypeKind kind, std::initializer_list<TypeKind> kinds) {
    return std::find(kinds.begin(), kinds.end(), kind) != kinds.end();
}

/// Whether a value may stand where the schema has `type`: kernels take a wrong one for a fault of LibTorch's own.
bool fits(const CTValue &value, const c10::Type &type) {
    auto kind = type.kind();
    switch (value.kind) {
        case CT_TENSOR: return kind == TypeKind::TensorType;
        case CT_INTEGER:
            return isOneOf(kind, {TypeKind::IntType, TypeKind::FloatType, TypeKind::NumberType}) ||
                   itemKind(type) == TypeKind::IntType;
        case CT_REAL: return isOneOf(kind, {TypeKind::FloatType, TypeKind::NumberType});
        case CT_BOOL: return isOneOf(kind, {TypeKind::BoolType, TypeKind::NumberType});
        case CT_INTEGERS:
            return isOneOf(itemKind(type),
                           {TypeKind::IntType, TypeKind::FloatType, TypeKind::BoolType, TypeKind::NumberType});
        case CT_REALS: return isOneOf(itemKind(type), {TypeKind::FloatType, TypeKind::NumberType});
        case CT_STRING: return kind == TypeKind::StringType;
        case CT_TENSORS: return itemKind(type) == TypeKind::TensorType;
        case CT_DEVICE: return kind == TypeKind::DeviceObjType;
        case CT_GENERATOR: return kind == TypeKind::GeneratorType;
        default: return true;
    }
}

void describeArgument(std::ostream &out, const CTValue &value);

[[noreturn]] void refuse(const CTValue &value, const c10::Argument &argument) {
    std::ostringstream found;
    describeArgument(found, value);
    TORCH_CHECK(false, "argument '", argument.name(), "' is ", found.str(), ", but has to be ", argument.type()->str());
}

IValue convert(const CTValue &value, const c10::Argument &argument) {
    const c10::Type &type = withoutOptional(*argument.type());
    if (!fits(value, type)) refuse(value, argument);
    switch (value.kind) {
        case CT_NONE:
            if (argument.type()->kind() != TypeKind::OptionalType) refuse(value, argument);
            return IValue();
        case CT_TENSOR: return tensor(static_cast<CTTensor>(value.pointer));
        case CT_INTEGER:
            if (type.kind() == TypeKind::FloatType) return static_cast<double>(value.integer);
            if (type.kind() == TypeKind::ListType) return std::vector<int64_t>{value.integer};
            return value.integer;
        case CT_REAL: return value.real;
        case CT_BOOL: return value.integer != 0;
        case CT_INTEGERS: return numberList(static_cast<const int64_t *>(value.pointer), value.count, itemKind(type));
        case CT_REALS: return numberList(static_cast<const double *>(value.pointer), value.count, itemKind(type));
        case CT_STRING: return std::string(static_cast<const char *>(value.pointer), value.count);
        case CT_TENSORS: return tensorList(value, type);
        case CT_DEVICE: return usableDevice(value.integer);
        case CT_GENERATOR: return *static_cast<at::Generator *>(value.pointer);
        case CT_DEFAULT: break;
        default: TORCH_CHECK(false, "unknown kind of argument ", value.kind);
    }
    TORCH_CHECK(argument.default_value(), "argument '", argument.name(), "' has no default value");
    return *argument.default_value();
}

template <class Item, class Source>
void *copyList(const Source &source, int64_t &count) {
    count = static_cast<int64_t>(source.size());
    auto items = static_cast<Item *>(std::malloc(sizeof(Item) * std::max<size_t>(source.size(), 1)));
    TORCH_CHECK(items, "out of memory");
    return items;
}

CTValue convert(const IValue &value) {
    CTValue result{};
    if (value.isNone()) {
        result.kind = CT_NONE;
    } else if (value.isTensor()) {
        const auto &item = value.toTensor();
        result.kind = item.defined() ? CT_TENSOR : CT_NONE;
        if (item.defined()) result.pointer = own(item);
    } else if (value.isInt()) {
        result.kind = CT_INTEGER;
        result.integer = value.toInt();
    } else if (value.isDouble()) {
        result.kind = CT_REAL;
        result.real = value.toDouble();
    } else if (value.isBool()) {
        result.kind = CT_BOOL;
        result.integer = value.toBool();
    } else if (value.isTensorList()) {
        auto list = value.toTensorVector();
        result.kind = CT_TENSORS;
        result.pointer = copyList<CTTensor>(list, result.count);
        for (size_t i = 0; i < list.size(); ++i) static_cast<CTTensor *>(result.pointer)[i] = own(list[i]);
    } else if (value.isIntList()) {
        auto list = value.toIntVector();
        result.kind = CT_INTEGERS;
        result.pointer = copyList<int64_t>(list, result.count);
        std::copy(list.begin(), list.end(), static_cast<int64_t *>(result.pointer));
    } else {
        TORCH_CHECK(false, "a result of type ", value.tagKind(), " has no form outside C++");
    }
    return result;
}

void describeArgument(std::ostream &out, const CTValue &value) {
    switch (value.kind) {
        case CT_NONE: out << "none"; break;
        case CT_TENSOR: out << shapeOf(tensor(static_cast<CTTensor>(value.pointer))); break;
        case CT_INTEGER: out << value.integer; break;
        case CT_REAL: out << value.real; break;
        case CT_BOOL: out << (value.integer ? "true" : "false"); break;
        case CT_INTEGERS:
        case CT_REALS:
            out << '[';
            for (int64_t i = 0; i < std::min<int64_t>(value.count, 8); ++i) {
                if (i) out << ", ";
                if (value.kind == CT_REALS) out << static_cast<const double *>(value.pointer)[i];
                else out << static_cast<const int64_t *>(value.pointer)[i];
            }
            out << (value.count > 8 ? ", ...]" : "]");
            break;
        case CT_STRING: out << '"' << std::string(static_cast<const char *>(value.pointer), value.count) << '"'; break;
        case CT_TENSORS: {
            auto items = static_cast<CTTensor const *>(value.pointer);
            out << '{';
            for (int64_t i = 0; i < std::min<int64_t>(value.count, 4); ++i)
                out << (i ? ", " : "") << (items[i] ? shapeOf(tensor(items[i])) : "none");
            out << (value.count > 4 ? ", ...}" : "}");
            break;
        }
        case CT_DEVICE: out << decodeDevice(value.integer).str(); break;
        case CT_GENERATOR: out << "generator"; break;
        default: out << "default";
    }
}

bool isDType(const CTValue &value, const c10::OperatorHandle &op, size_t index) {
    const auto &declared = op.schema().arguments();
    return value.kind == CT_INTEGER && value.integer >= 0 && value.integer < c10::NumScalarTypes &&
           index < declared.size() && withoutOptional(*declared[index].real_type()).kind() == TypeKind::ScalarTypeType;
}

std::string describeCall(const c10::OperatorHandle &op, const CTValue *arguments, int32_t count) {
    std::ostringstream out;
    out << op.schema().name();
    if (!op.schema().overload_name().empty()) out << '.' << op.schema().overload_name();
    out << '(';
    for (int32_t i = 0; i < count; ++i) {
        if (i) out << ", ";
        if (isDType(arguments[i], op, i))
            out << c10::getDtypeNames(static_cast<at::ScalarType>(arguments[i].integer)).first;
        else
            describeArgument(out, arguments[i]);
    }
    out << ')';
    return out.str();
}

}  // namespace

std::string shapeOf(const at::Tensor &value) {
    if (!value.defined()) return "undefined";
    std::ostringstream out;
    out << c10::getDtypeNames(value.scalar_type()).first << '[';
    for (int64_t i = 0; i < value.dim(); ++i) out << (i ? ", " : "") << value.size(i);
    out << ']';
    if (!value.is_cpu()) out << '@' << value.device().str();
    return out.str();
}

CTOperator findOperator(const char *name, const char *overload) {
    return guarded<CTOperator>(nullptr, [&] {
        auto handle = c10::Dispatcher::singleton().findSchema({name, overload});
        TORCH_CHECK(handle.has_value(), "LibTorch has no operator '", name, *overload ? "." : "", overload, "'");
        return reinterpret_cast<CTOperator>(new c10::OperatorHandle(*handle));
    });
}

int32_t call(CTOperator handle, const CTValue *arguments, int32_t count, CTValue *results, int32_t capacity) {
    const auto &op = *reinterpret_cast<const c10::OperatorHandle *>(handle);
    int32_t written = guarded<int32_t>(-1, [&] {
        const auto &declared = op.schema().arguments();
        TORCH_CHECK(count <= static_cast<int32_t>(declared.size()), "takes ", declared.size(), " arguments, not ", count);
        torch::jit::Stack stack;
        stack.reserve(declared.size());
        for (size_t i = 0; i < declared.size(); ++i) {
            CTValue absent{};
            absent.kind = CT_DEFAULT;
            stack.push_back(convert(static_cast<int32_t>(i) < count ? arguments[i] : absent, declared[i]));
        }
        op.callBoxed(&stack);
        TORCH_CHECK(static_cast<int32_t>(stack.size()) <= capacity, "has ", stack.size(), " results, more than ", capacity);
        for (size_t i = 0; i < stack.size(); ++i) results[i] = convert(stack[i]);
        return static_cast<int32_t>(stack.size());
    });
    if (written < 0) lastError() = describeCall(op, arguments, count) + ": " + lastError();
    return written;
}

void freeList(void *list) { std::free(list); }

}  // namespace graft
