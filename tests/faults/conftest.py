from recipes.conftest import few_pictures as few_pictures
