// Binds a struct as a Python class, given a list of its fields: the constructor takes the fields by
// name, and each field is an attribute.

#pragma once

#include <nanobind/nanobind.h>

#include <new>

#include "isa.hpp"

namespace nanobind::detail {
template <>
struct type_caster<matroot::Pointer> {
  NB_TYPE_CASTER(matroot::Pointer, const_name("int"))
  bool from_python(handle from, std::uint8_t flags, cleanup_list* cleanup) noexcept {
    make_caster<std::uintptr_t> number;
    if (!number.from_python(from, flags, cleanup)) return false;
    value = {number.value};
    return true;
  }
  static handle from_cpp(matroot::Pointer p, rv_policy, cleanup_list*) noexcept {
    return PyLong_FromUnsignedLongLong(p.address);
  }
};
}  // namespace nanobind::detail

namespace matroot {

template <class Struct, class F, bool has_default>
struct Field {
  using Type = F;
  const char* name;
  F Struct::* member;
  auto argument() const {
    if constexpr (has_default) return nanobind::arg(name) = Struct{}.*member;
    else return nanobind::arg(name);
  }
};
template <class Struct, class F>
Field<Struct, F, false> required(const char* name, F Struct::* member) {
  return {name, member};
}
template <class Struct, class F>
Field<Struct, F, true> optional(const char* name, F Struct::* member) {
  return {name, member};
}

template <class Struct, class... Fields>
void bind(nanobind::module_& m, const char* name, const char* doc, Fields... fields) {
  nanobind::class_<Struct> bound(m, name, doc);
  bound.def(
      "__init__",
      [fields...](Struct* self, typename Fields::Type... values) {
        new (self) Struct{};
        ((self->*fields.member = std::move(values)), ...);
      },
      nanobind::kw_only(), fields.argument()...);
  (bound.def_rw(fields.name, fields.member), ...);
}

}  // namespace matroot
